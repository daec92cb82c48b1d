"""The settings of a plan that are tried: the backend's caps and others around them, if they fit."""

from __future__ import annotations

from dataclasses import replace

from engine.executors.protocol import StepTimer
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Settings
from tuner.described.node import Node
from tuner.planner.question import Question
from tuner.search.design import ruled_settings
from tuner.workload.workload import Workload

# A Shift plan's thresholds come on top.
MAX_CAPS = 8
# Changes to the backend's own caps: None keeps what it has.
_CAPS = (
    (None, 2048),
    (None, 1024),
    (None, 512),
    (64, 2048),
    (None, 32_768),
)


def plan_settings(
    plan: ParallelPlan, timer: StepTimer, default: Caps, *, has_rungs: bool = True
) -> list[Settings]:
    """A plan under at most ``MAX_CAPS`` caps: the backend's own first, then others around them.

    The thresholds are those that step times advise for the whole ladder (``has_rungs``: the system
    has one), and for its two ends alone; a twin keeps full decode steps in shift. No caps allow
    more sequences than tokens: a step could not hold them, and vLLM and Arctic Inference refuse to
    start.
    """
    settings = [
        ruled
        for caps in _every_caps(default)
        for ruled in ruled_settings(plan, timer, caps, has_rungs=has_rungs)
    ]
    return list(dict.fromkeys(settings))


def _every_caps(default: Caps) -> list[Caps]:
    own = (default.max_num_seqs, default.max_num_batched_tokens)
    wanted = [own, *((seqs or own[0], tokens or own[1]) for seqs, tokens in _CAPS)]
    held = dict.fromkeys((min(seqs, tokens), tokens) for seqs, tokens in wanted)
    every = [
        replace(default, max_num_seqs=seqs, max_num_batched_tokens=tokens) for seqs, tokens in held
    ]
    return every[:MAX_CAPS]


def memory_reason(node: Node, plan: ParallelPlan, workload: Workload) -> str | None:
    """Why ``plan`` fits under none of the caps that would be tried; None if it does under some."""
    estimates = [
        node.memory(plan, caps=caps, needed_kv_tokens=needed_kv_tokens(node, workload))
        for caps in _every_caps(node.backend.default_caps)
    ]
    if any(estimate.reason is None for estimate in estimates):
        return None
    return max(estimates, key=lambda estimate: estimate.kv_bytes).reason


def needed_kv_tokens(node: Node, workload: Workload) -> int:
    """KV tokens of the longest request that the context allows, at least one block."""
    longest = int((workload.input_tokens + workload.output_tokens).max())
    return max(min(longest, node.context_tokens), node.block_size)


def fitting_settings(question: Question, node: Node, plan: ParallelPlan) -> list[Settings]:
    """A plan's settings that fit: activations of large steps may leave too little room for KV."""
    options = plan_settings(
        plan, node.timer(plan), node.backend.default_caps, has_rungs=node.has_rungs
    )
    needed = needed_kv_tokens(node, question.workload)
    return [
        settings
        for settings in options
        if node.memory(settings.plan, caps=settings.caps, needed_kv_tokens=needed).reason is None
    ]
