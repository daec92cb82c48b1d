"""What the sampled tokens of a step do to its sequences."""

from __future__ import annotations

import numpy as np

from engine.scheduler.roster import Roster
from engine.scheduler.step import ScheduledStep, StepOutcome
from engine.scheduler.table import Sequence, SequenceTable
from engine.spec.request import FinishReason
from engine.spec.steps import Int32Array


def outcome_of(
    step: ScheduledStep, token_ids: Int32Array, table: SequenceTable, roster: Roster
) -> StepOutcome:
    """Give each sampled row its token of ``token_ids`` i4[R], unless its sequence has ended
    meanwhile."""
    rows = np.flatnonzero(step.is_sampled)
    nths = np.flatnonzero(~table.is_ended[step.slots[rows]])
    slots = step.slots[rows[nths]]
    table.num_known[slots] += 1
    sequences = [step.sequences[row] for row in rows[nths].tolist()]
    ids = token_ids[nths].tolist()
    for sequence, token_id in zip(sequences, ids, strict=True):
        sequence.output_ids.append(token_id)
    may_end = table.num_known[slots] >= table.max_len[slots]
    if not roster.ending_ids.isdisjoint(ids):
        may_end |= np.array([token_id in roster.ending_ids for token_id in ids])
    finished: list[tuple[Sequence, FinishReason]] = []
    for nth in np.flatnonzero(may_end).tolist():
        length = int(table.num_known[slots[nth]])
        if reason := sequences[nth].finish_reason(ids[nth], length, roster.eos_token_ids):
            finished.append((sequences[nth], reason))
    return StepOutcome(
        sampled=list(zip(sequences, ids, strict=True)),
        sampled_rows=nths.tolist(),
        finished=finished,
    )
