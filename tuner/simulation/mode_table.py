"""The mode table that a simulated engine starts with: step times told instead of measured."""

from __future__ import annotations

from engine.executors.protocol import StepTimer
from engine.modes.table import ModeTable
from engine.replica.mode_timing import SyntheticSteps, padded_sizes
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps


def modelled_table(
    timer: StepTimer,
    plan: ParallelPlan,
    *,
    envelope: Caps,
    longest: int,
    block_size: int,
    num_kv_blocks: int,
) -> ModeTable:
    """The table of the steps that an engine with this ``envelope`` times on its ranks; ``longest``
    is the most tokens of a sequence.
    """
    steps = SyntheticSteps(
        max_num_seqs=envelope.max_num_seqs,
        longest=longest,
        block_size=block_size,
        num_kv_blocks=num_kv_blocks,
        vocab_size=1,  # nobody computes them
    )
    most = min(envelope.max_num_batched_tokens, envelope.max_num_seqs * longest)
    sizes = padded_sizes(most, plan)
    shapes = {
        mode: [steps.build(min(size, most), mode, step_id=0, num_before=0).shape for size in sizes]
        for mode in plan.modes
    }
    return ModeTable(
        sizes=sizes,
        columns={
            mode: tuple(sum(timer.stage_seconds(shape)) for shape in found)
            for mode, found in shapes.items()
        },
        is_timed=(True,) * len(sizes),
        fingerprint="",
        plan=str(plan),
        device="simulated",
    )
