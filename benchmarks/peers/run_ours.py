"""This engine as a peer.

python -m benchmarks.peers.run_ours CHECKPOINT DTYPE PLAN [QUANTISATION [THREADS]]
"""

from __future__ import annotations

import queue
import sys
import time
from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path

from benchmarks.peers.loop import Generate, serve
from engine.engine import Engine
from engine.spec.config import EngineConfig
from engine.spec.model import DType
from engine.spec.plan import parse_plan
from engine.spec.quantisation import WeightFormat
from engine.spec.request import Request, RequestOutput, SamplingParams
from engine.spec.settings import Caps, Settings

CAPS = Caps(max_num_seqs=64, max_num_batched_tokens=4096)
KV_CACHE_BYTES = 2**30


def load(
    model_dir: str, dtype: str, plan: str, quantisation: str = "", threads: str = ""
) -> Generate:
    """An embedded engine with greedy sampling and without a prefix cache."""
    engine = Engine(
        EngineConfig(
            model_dir=Path(model_dir),
            dtype=DType(dtype),
            settings=Settings(plan=parse_plan(plan).plan, caps=CAPS),
            kv_cache_bytes=KV_CACHE_BYTES,
            max_model_len=4096,
            prefix_cache=False,
            quantisation=WeightFormat(quantisation) if quantisation else None,
            threads_per_rank=int(threads) if threads else None,
        )
    )
    engine.start()
    return partial(_generate, engine, count())


def _generate(
    engine: Engine, numbers: Iterator[int], prompts: list[list[int]], num_tokens: int
) -> list[list[int]]:
    outputs: queue.SimpleQueue[RequestOutput] = queue.SimpleQueue()
    tokens: dict[str, list[int]] = {}
    for prompt in prompts:
        request = Request(
            request_id=str(next(numbers)),
            prompt_ids=tuple(prompt),
            sampling=SamplingParams(max_tokens=num_tokens, ignore_eos=True),
            arrival_s=time.monotonic(),
        )
        tokens[request.request_id] = []
        engine.submit(request, outputs.put)
    left = len(prompts)
    while left:
        output = outputs.get()
        if output.error is not None:
            raise RuntimeError(output.error)
        tokens[output.request_id] += output.token_ids
        left -= output.is_finished
    return list(tokens.values())


if __name__ == "__main__":
    serve(partial(load, *sys.argv[1:6]))
