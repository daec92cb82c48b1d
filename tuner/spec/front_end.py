"""What lies between a client and the scheduler of a simulated engine: time, not order."""

from __future__ import annotations

from dataclasses import dataclass

from tuner.spec.errors import TunerError


@dataclass(frozen=True, kw_only=True)
class FrontEnd:
    """Seconds a request takes on its way in, and a token on its way out.

    In: ``request_s`` plus ``prompt_token_s`` per prompt token (HTTP, tokenising, hand-over).
    Out: ``answer_s`` from the end of a step until the client holds its token. With a ``token_s``
    one process does both for a replica, one after the other: it spends that on each token (text,
    JSON, the write to the socket), and its time in on each request. Who comes while it is busy
    waits (NVIDIA/TensorRT-LLM, pull requests 15690 and 16523). It sends ``stream_interval`` tokens
    of an answer together, at the price of one.

    Raises:
        TunerError: a stream interval below 1.
    """

    request_s: float = 0.0
    prompt_token_s: float = 0.0
    answer_s: float = 0.0
    token_s: float = 0.0
    stream_interval: int = 1

    def __post_init__(self) -> None:
        if self.stream_interval < 1:
            raise TunerError(f"stream_interval={self.stream_interval}: must be at least 1")

    @property
    def takes_turns(self) -> bool:
        """Whether requests wait for tokens on their way out, and tokens for requests."""
        return self.busy_s > 0

    @property
    def busy_s(self) -> float:
        """Seconds of its process for each token, on average."""
        return self.token_s / self.stream_interval

    def seconds_in(self, prompt_tokens: int) -> float:
        """From a client's send until the scheduler can see the request."""
        return self.request_s + self.prompt_token_s * prompt_tokens


NO_FRONT_END = FrontEnd()
