"""Why a system cannot run a plan or caps."""

from __future__ import annotations

from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps

NO_SEQUENCE_PARALLELISM = ("vllm", "sglang", "trtllm")
NO_PIPELINES = ("arctic",)
# These refuse to start with more sequences than tokens per step.
TOKENS_FOR_ALL = ("vllm", "arctic")


def why_not(system: str, plan: ParallelPlan) -> str | None:
    """Why ``system`` (also a backend's name) cannot run ``plan``; None when it can."""
    if plan.sp > 1 and system in NO_SEQUENCE_PARALLELISM:
        return f"{system} has no sequence parallelism for inference (sp={plan.sp})"
    if plan.pp > 1 and system in NO_PIPELINES:
        return (
            f"{system} has no pipeline parallelism beside its sequence parallelism (pp={plan.pp})"
        )
    return None


def why_not_caps(system: str, caps: Caps) -> str | None:
    """Why ``system`` does not start with ``caps``; None when it does."""
    if system in TOKENS_FOR_ALL and caps.max_num_batched_tokens < caps.max_num_seqs:
        return (
            f"{system} does not start with max_num_batched_tokens={caps.max_num_batched_tokens} "
            f"below max_num_seqs={caps.max_num_seqs}"
        )
    return None
