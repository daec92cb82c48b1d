"""Answers timed questions on a pipe; standard library only, since every peer's Python runs it.

A question is one JSON line ``{"prompts": [[id, ...], ...], "num_tokens": n}``, the answer
``{"seconds": s, "tokens": [[id, ...], ...]}``.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable

Generate = Callable[[list[list[int]], int], list[list[int]]]


def serve(load: Callable[[], Generate]) -> None:
    """Load a peer, say ``{"ready": ...}``, then answer until standard input ends.

    What libraries print goes to standard error: standard output holds answers alone.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    started_s = time.perf_counter()
    generate = load()
    print(json.dumps({"ready": time.perf_counter() - started_s}), file=answers, flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        asked_s = time.perf_counter()
        tokens = generate(question["prompts"], question["num_tokens"])
        seconds = time.perf_counter() - asked_s
        print(json.dumps({"seconds": seconds, "tokens": tokens}), file=answers, flush=True)
