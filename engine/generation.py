"""One request from its first token to its last, for callers that wait for the whole output."""

from __future__ import annotations

import queue
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.replica.stream import RequestStream
from engine.spec.errors import RankError
from engine.spec.request import FinishReason, RequestOutput, TokenLogprobs


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One finished output. Only if asked for, it has ``logits`` f8[output tokens, vocabulary],
    ``logprobs`` (one per output token) and ``prompt_logprobs`` (one per prompt token but the
    first).
    """

    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    logits: npt.NDArray[np.float64] | None
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()


def gather(stream: RequestStream, outputs: queue.Queue[RequestOutput]) -> Generation:
    """Wait for the end of ``stream``, whose outputs arrive in ``outputs``.

    Raises:
        RankError: it ended with an error.
    """
    token_ids: list[int] = []
    logprobs: list[TokenLogprobs] = []
    prompt_logprobs: list[TokenLogprobs] = []
    text = ""
    while True:
        output = outputs.get()
        token_ids += output.token_ids
        logprobs += output.logprobs
        prompt_logprobs += output.prompt_logprobs
        text += output.text
        if output.error is not None:
            raise RankError(output.error)
        if output.finish_reason is not None:
            break
    return Generation(
        token_ids=tuple(token_ids),
        text=text,
        finish_reason=output.finish_reason,
        logits=np.stack(stream.logits) if stream.logits else None,
        logprobs=tuple(logprobs),
        prompt_logprobs=tuple(prompt_logprobs),
    )
