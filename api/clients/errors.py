"""What a service refuses with."""

from __future__ import annotations

from typing import Any

import httpx

Json = dict[str, Any]


class ClientError(Exception):
    """The service refused; the message is its own, ``problem`` the whole document."""

    def __init__(self, status: int, problem: Json) -> None:
        details = [f"{e['pointer']}: {e['detail']}" for e in problem.get("errors", [])]
        message = "; ".join([str(problem.get("detail", "no detail")), *details])
        super().__init__(f"{status} {problem.get('code', '')}: {message}")
        self.status = status
        self.problem = problem

    @classmethod
    def of(cls, response: httpx.Response) -> ClientError:
        """What an answer with an error says."""
        try:
            problem = response.json()
        except ValueError:
            problem = None
        if not isinstance(problem, dict):
            problem = {"detail": response.text[:200]}
        return cls(response.status_code, problem)
