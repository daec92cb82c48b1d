"""The picture in the table's docstring is what happens to a row."""

from __future__ import annotations

import numpy as np

from engine.modes.chooser import ModeChooser
from engine.scheduler.scheduler import Scheduler
from engine.scheduler.step import ScheduledStep
from engine.scheduler.table import SequenceTable
from engine.spec.plan import ParallelPlan
from engine.spec.request import Request, SamplingParams
from engine.spec.settings import Caps

BLOCK_SIZE = 4
CAPS = Caps(max_num_seqs=1, max_num_batched_tokens=4)


def draw(table: SequenceTable, slot: int) -> str:
    """The tokens of a row, a space after each block; those that are not known in parentheses."""
    known, tokens = int(table.num_known[slot]), int(table.num_tokens[slot])
    cells = ["#" if n < table.num_computed[slot] else "." for n in range(tokens)]
    for n in range(BLOCK_SIZE, tokens, BLOCK_SIZE):
        cells[n] = " " + cells[n]
    unknown = "".join(cells[known:])
    return "".join(cells[:known]) + (f"({unknown})" if unknown else "")


def test_one_row_goes_through_three_steps_as_in_the_picture() -> None:
    scheduler = Scheduler(
        caps=CAPS,
        envelope=CAPS,
        chooser=ModeChooser(plan=ParallelPlan(), threshold_tokens=8),
        num_blocks=8,
        block_size=BLOCK_SIZE,
        max_model_len=32,
    )
    table, found = scheduler.running.table, list[str]()
    request = Request(
        request_id="a", prompt_ids=(1,) * 6, sampling=SamplingParams(max_tokens=9, ignore_eos=True)
    )
    slot = 0

    def look(what: str) -> None:
        counts = (table.num_known, table.num_tokens, table.num_computed)
        numbers = [int(column[slot]) for column in (*counts, table.in_flight, table.num_blocks)]
        found.append(" ".join([what, draw(table, slot), *map(str, numbers)]))

    def scheduled(step: ScheduledStep | None) -> ScheduledStep:
        assert step is not None
        assert step.slots.tolist() == [slot]
        look(f"+ step {step.step_id}")
        return step

    def commit(step: ScheduledStep) -> None:
        scheduler.commit(step, np.full(step.num_sampled, 7, np.int32))
        look(f"- step {step.step_id}")

    scheduler.add(request)
    first = scheduled(scheduler.schedule())
    second = scheduled(scheduler.schedule_ahead())
    commit(first)
    third = scheduled(scheduler.schedule_ahead())
    commit(second)
    commit(third)
    assert found == picture()


def picture() -> list[str]:
    """The lines of the docstring that show a step, with single spaces."""
    lines = [" ".join(line.split()) for line in (SequenceTable.__doc__ or "").splitlines()]
    return [line for line in lines if line.startswith(("+ step", "- step"))]
