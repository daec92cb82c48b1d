"""How much of a prompt a step may take, so that it keeps to its time in the mode it will run in."""

from __future__ import annotations

from engine.modes.chooser import ModeChooser
from engine.modes.pace import MAX_STEP_TOKENS, StepPace
from engine.spec.plan import Mode


def prefill_room(
    *,
    used: int,
    prefill_tokens: int,
    budget: int,
    max_step_ms: float | None,
    block_size: int,
    chooser: ModeChooser,
    pace: StepPace,
    step_id: int,
) -> int:
    """Most tokens that prefill chunks may still add to a step that holds ``used`` already.

    ``prefill_tokens`` of those are of prompts; ``budget`` tokens are left of the step's own cap.
    The mode is that of the whole step, so one more chunk may turn it over: a step that would take
    longer than ``max_step_ms`` in base is kept to what runs in shift. One block of prompt moves
    on in every step, else a tight cap would starve prefills; of a block that would turn a shift
    step over, what keeps it in shift.
    """
    budget = max(budget, 0)
    if max_step_ms is None:
        return budget
    limits = {mode: _limit(mode, max_step_ms, chooser, pace) for mode in chooser.plan.modes}
    largest = max(
        chooser.largest_tokens(mode, min(used + budget, limit), step_id)
        for mode, limit in limits.items()
    )
    floor = 0 if prefill_tokens else _floor(used, min(block_size, budget), chooser, step_id)
    return max(largest - used, floor)


def _limit(mode: Mode, max_step_ms: float, chooser: ModeChooser, pace: StepPace) -> int:
    """Tokens that fit the time in ``mode``: as seen lately, else as timed at the start, else as
    the other mode was seen to take.
    """
    limit = pace.max_tokens(mode, max_step_ms)
    if limit is None and chooser.table is not None:
        limit = chooser.table.max_tokens(mode, max_step_ms)
    if limit is None:
        seen = (pace.max_tokens(other, max_step_ms) for other in chooser.plan.modes)
        limit = next((tokens for tokens in seen if tokens is not None), None)
    return MAX_STEP_TOKENS if limit is None else max(limit, 0)


def _floor(used: int, block: int, chooser: ModeChooser, step_id: int) -> int:
    in_shift = chooser.largest_tokens(Mode.SHIFT, used + block, step_id) - used
    return in_shift if in_shift > 0 else block
