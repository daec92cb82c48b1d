"""What a service refuses with."""

from __future__ import annotations

from typing import Any

import httpx

Json = dict[str, Any]


class ClientError(Exception):
    """The service refused; the message is its own, ``problem`` the whole document."""

    def __init__(self, status: int, problem: Json) -> None:
        detail = str(problem.get("detail", "no detail"))
        parts = [f"{e['pointer']}: {e['detail']}" for e in problem.get("errors", [])]
        # Of a file as a whole the only part is what was said already.
        message = "; ".join([detail, *(part for part in parts if part != f": {detail}")])
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
