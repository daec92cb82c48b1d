"""Why a system cannot run a plan or caps."""

from __future__ import annotations

from engine.spec.modes import ENDS
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Settings

NO_SEQUENCE_PARALLELISM = ("vllm", "sglang", "trtllm")
NO_PIPELINES = ("arctic",)
OWN = "gearshift"
# These refuse to start with more sequences than tokens per step.
TOKENS_FOR_ALL = ("vllm", "arctic")


def why_not(system: str, plan: ParallelPlan) -> str | None:
    """Why ``system`` (also a backend's name) cannot run ``plan``; None when it can."""
    if plan.sp > 1 and system in NO_SEQUENCE_PARALLELISM:
        rungs = ", so no rungs of a ladder either" if plan.modes[1:-1] else ""
        return f"{system} has no sequence parallelism for inference (sp={plan.sp}){rungs}"
    if plan.pp > 1 and system in NO_PIPELINES:
        return (
            f"{system} has no pipeline parallelism beside its sequence parallelism (pp={plan.pp})"
        )
    return None


def rungs_note(system: str, settings: Settings) -> str | None:
    """What ``system`` leaves out of the ladder that the settings use; None: nothing."""
    between = [mode for mode in settings.modes_in_use if mode not in ENDS]
    if not between or system == OWN:
        return None
    return (
        f"{system} has no rungs between base and shift: steps that were simulated on "
        f"{', '.join(between)} run in base"
    )


def why_not_caps(system: str, caps: Caps) -> str | None:
    """Why ``system`` does not start with ``caps``; None when it does."""
    if system in TOKENS_FOR_ALL and caps.max_num_batched_tokens < caps.max_num_seqs:
        return (
            f"{system} does not start with max_num_batched_tokens={caps.max_num_batched_tokens} "
            f"below max_num_seqs={caps.max_num_seqs}"
        )
    return None
