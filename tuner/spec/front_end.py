"""What lies between a client and the scheduler of a simulated engine: time, not order."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class FrontEnd:
    """Seconds a request takes on its way in, and a token on its way out.

    In: ``request_s`` plus ``prompt_token_s`` per prompt token (HTTP, tokenising, hand-over).
    Out: ``answer_s`` from the end of a step until the client holds its token.
    """

    request_s: float = 0.0
    prompt_token_s: float = 0.0
    answer_s: float = 0.0

    def seconds_in(self, prompt_tokens: int) -> float:
        """From a client's send until the scheduler can see the request."""
        return self.request_s + self.prompt_token_s * prompt_tokens


NO_FRONT_END = FrontEnd()
