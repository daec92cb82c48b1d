"""OpenVINO GenAI as a peer; runs in an environment of its own that has ``openvino-genai``.

python run_openvino.py EXPORTED_FOLDER PRECISION
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

from loop import Generate, serve

# The cache is in GiB.
SCHEDULER = {
    "cache_size": 2,
    "max_num_batched_tokens": 4096,
    "max_num_seqs": 64,
    "enable_prefix_caching": False,
}


def load(model_dir: str, precision: str) -> Generate:
    """A continuous-batching pipeline with greedy sampling and without a prefix cache."""
    import openvino_genai as genai

    scheduler = genai.SchedulerConfig()
    for name, value in SCHEDULER.items():
        setattr(scheduler, name, value)
    pipeline = genai.ContinuousBatchingPipeline(
        model_dir, scheduler, "CPU", {"INFERENCE_PRECISION_HINT": precision}
    )
    return partial(_generate, pipeline, genai)


def _generate(
    pipeline: Any, genai: Any, prompts: list[list[int]], num_tokens: int
) -> list[list[int]]:
    import numpy as np
    import openvino as ov

    config = genai.GenerationConfig(max_new_tokens=num_tokens, ignore_eos=True, do_sample=False)
    asked = [ov.Tensor(np.array([prompt], dtype=np.int64)) for prompt in prompts]
    results = pipeline.generate(asked, [config] * len(asked))
    return [list(result.m_generation_ids[0]) for result in results]


if __name__ == "__main__":
    serve(partial(load, sys.argv[1], sys.argv[2]))
