"""The mode table: how long steps of each size take in each mode, and which mode that favours."""

from __future__ import annotations

import itertools
import json
import math
import secrets
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from engine.spec.errors import EngineError
from engine.spec.modes import BASE, SHIFT, Mode

SCHEMA = "mode-table/v1"
# A mode must win by this share of its time over those with fewer slices. This is no hysteresis, for
# a change of mode costs nothing. Where modes are alike, it keeps timing noise from making a ragged
# table.
DEAD_BAND = 0.01
WAY_OUT = "delete it to have the modes timed again, or name another one with --mode-table"


@dataclass(frozen=True, kw_only=True)
class ModeTable:
    """Seconds of a step in each mode at each padded size, and the choice they make.

    ``sizes`` [B] ascending tokens; a step belongs to the bucket of the smallest size that holds it.
    ``columns``: seconds [B] of each mode, from base down to shift. ``is_timed`` [B]: whether a
    bucket was measured; others follow from their neighbours (:func:`filled`). ``fingerprint`` names
    the model, plan and machine that the table applies to, and no others; ``plan`` and ``device``
    say it in words. ``allowed`` are the modes to choose from; None: all.

    Raises:
        EngineError: columns of unlike length, sizes that do not ascend, times that are no times, no
            bucket that was measured, or a mode without a column.
    """

    sizes: tuple[int, ...]
    columns: Mapping[Mode, tuple[float, ...]]
    is_timed: tuple[bool, ...]
    fingerprint: str
    plan: str
    device: str
    allowed: tuple[Mode, ...] | None = None

    def __post_init__(self) -> None:
        lengths = {f"{mode}": len(column) for mode, column in self.columns.items()}
        if not self.sizes or not lengths or set(lengths.values()) != {len(self.sizes)}:
            raise EngineError(
                f"a mode table of {len(self.sizes)} sizes has times {lengths}; it needs one of "
                "each mode per size"
            )
        if self.sizes[0] < 1 or any(a >= b for a, b in itertools.pairwise(self.sizes)):
            raise EngineError(f"sizes {list(self.sizes)}: must be at least 1 and ascend")
        for seconds in itertools.chain.from_iterable(self.columns.values()):
            if not 0.0 < seconds < math.inf:
                raise EngineError(f"{seconds} s for a step: must be above 0 and finite")
        if len(self.is_timed) != len(self.sizes) or not any(self.is_timed):
            raise EngineError(
                f"of {len(self.sizes)} sizes, {self.is_timed} were measured; at least one must be"
            )
        if unknown := [mode for mode in self.allowed or () if mode not in self.columns]:
            raise EngineError(f"mode {unknown[0]!r} was not timed; timed: {list(lengths)}")

    @property
    def num_timed(self) -> int:
        """How many buckets were measured."""
        return sum(self.is_timed)

    @cached_property
    def modes(self) -> tuple[Mode, ...]:
        """The mode of each bucket: the fastest one, that of the fewest slices where they are
        alike.
        """
        return tuple(self._fastest(i) for i in range(len(self.sizes)))

    def _fastest(self, bucket: int) -> Mode:
        narrow_first = [mode for mode in self.columns if mode in (self.allowed or self.columns)]
        best = narrow_first.pop()
        while narrow_first:
            mode = narrow_first.pop()
            if self.columns[best][bucket] > self.columns[mode][bucket] * (1.0 + DEAD_BAND):
                best = mode
        return best

    def only(self, allowed: Iterable[Mode]) -> ModeTable:
        """The same times with the choice among ``allowed``."""
        kept = tuple(allowed)
        return self if kept == self.allowed else replace(self, allowed=kept)

    def faster(self, num_tokens: int) -> Mode:
        """The mode for a step of ``num_tokens``; beyond the largest size, that of the largest."""
        return self.modes[min(bisect_left(self.sizes, num_tokens), len(self.sizes) - 1)]

    def seconds(self, mode: Mode, num_tokens: int) -> float:
        """Seconds of a step of ``num_tokens`` in ``mode``."""
        column = self.columns[mode]
        bucket = bisect_left(self.sizes, num_tokens)
        if bucket < len(self.sizes):
            return column[bucket]
        return line_through_last(self.sizes, column, num_tokens)

    def other_s(self, chosen: Mode, num_tokens: int) -> float | None:
        """Seconds of the quickest mode beside ``chosen``; None where there is no other."""
        others = (mode for mode in self.columns if mode is not chosen)
        return min((self.seconds(mode, num_tokens) for mode in others), default=None)

    def regret_s(self, chosen: Mode, num_tokens: int) -> float:
        """Seconds a step loses in the mode ``chosen``; 0 when it is the table's own choice."""
        other = self.faster(num_tokens)
        if chosen is other:
            return 0.0
        lost_s = self.seconds(chosen, num_tokens) - self.seconds(other, num_tokens)
        return max(lost_s, 0.0)

    def largest_tokens(self, mode: Mode, at_most: int) -> int:
        """The largest step of at most ``at_most`` tokens that runs in ``mode``; 0 for none."""
        if at_most > self.sizes[-1] and self.modes[-1] == mode:
            return at_most
        last = min(bisect_left(self.sizes, at_most), len(self.sizes) - 1)
        buckets = (i for i in range(last, -1, -1) if self.modes[i] == mode)
        return next((min(at_most, self.sizes[i]) for i in buckets), 0)

    def max_tokens(self, mode: Mode, max_step_ms: float) -> int | None:
        """Largest size up to which every step fits ``max_step_ms``; None when all sizes do."""
        column = self.columns[mode]
        too_long = (i for i, seconds in enumerate(column) if seconds * 1e3 > max_step_ms)
        first = next(too_long, None)
        if first is None:
            return None
        return self.sizes[first - 1] if first else 0

    @property
    def largest_shift_tokens(self) -> int:
        """The largest size of the table that runs in shift; 0 when none does."""
        return self.largest_tokens(SHIFT, self.sizes[-1])

    @property
    def threshold_tokens(self) -> int:
        """The single threshold between base and shift with the least loss: each bucket's share of
        time lost, summed up.

        Of equal thresholds it is the largest, which runs most steps in shift.
        """
        cuts = range(len(self.sizes), -1, -1)
        best = min(cuts, key=self._loss)
        return self.sizes[best - 1] if best else 0

    def _loss(self, cut: int) -> float:
        """Time lost when the first ``cut`` buckets run in shift and all others in base."""
        total = 0.0
        for i, size in enumerate(self.sizes):
            chosen = SHIFT if i < cut else BASE
            total += self.regret_s(chosen, size) / self.seconds(self.modes[i], size)
        return total

    def to_json(self) -> dict[str, Any]:
        """A ``mode-table/v1`` document. It also tells readers what follows from the times."""
        rows = zip(self.sizes, self.modes, strict=True)
        return {
            "schema": SCHEMA,
            "fingerprint": self.fingerprint,
            "plan": self.plan,
            "device": self.device,
            "num_timed": self.num_timed,
            "threshold_tokens": self.threshold_tokens,
            "largest_shift_tokens": self.largest_shift_tokens,
            "buckets": [
                {
                    "tokens": size,
                    **{f"{column}_s": self.columns[column][i] for column in self.columns},
                    "mode": mode,
                    "is_measured": self.is_timed[i],
                }
                for i, (size, mode) in enumerate(rows)
            ],
        }

    @classmethod
    def from_json(cls, document: Any, *, where: str) -> ModeTable:
        """Read a ``mode-table/v1`` document; ``where`` names its file in errors.

        Raises:
            EngineError: another schema, or parts that are missing or make no table.
        """
        schema = document.get("schema") if isinstance(document, dict) else None
        if schema != SCHEMA:
            raise EngineError(f"{where}: schema {schema!r} is not {SCHEMA!r}; {WAY_OUT}")
        try:
            buckets = document["buckets"]
            modes = [Mode(key[:-2]) for key in buckets[0] if key.endswith("_s")]
            return cls(
                sizes=tuple(int(bucket["tokens"]) for bucket in buckets),
                columns={
                    mode: tuple(float(bucket[f"{mode}_s"]) for bucket in buckets)
                    for mode in dict.fromkeys((BASE, *modes, SHIFT))
                },
                is_timed=tuple(bool(bucket["is_measured"]) for bucket in buckets),
                fingerprint=str(document["fingerprint"]),
                plan=str(document["plan"]),
                device=str(document["device"]),
            )
        except KeyError as missing:
            raise EngineError(f"{where}: {missing} is missing; {WAY_OUT}") from missing
        except (TypeError, ValueError, LookupError, EngineError) as error:
            raise EngineError(f"{where}: not a mode table ({error}); {WAY_OUT}") from error


def filled(timed: Mapping[int, float], sizes: Sequence[int]) -> tuple[float, ...]:
    """Seconds at each of ``sizes``, ascending, from those at the sizes that were timed: between two
    of them on their line, beyond the largest on the line through the last two.
    """
    known = sorted(timed)
    column = [timed[size] for size in known]
    return tuple(
        float(np.interp(size, known, column))
        if size <= known[-1]
        else line_through_last(known, column, size)
        for size in sizes
    )


def line_through_last(sizes: Sequence[int], column: Sequence[float], num_tokens: int) -> float:
    """Seconds beyond the largest size, on the line through the last two but never below the last.

    With one size only, time grows with the tokens.
    """
    if len(sizes) == 1:
        return column[0] * num_tokens / sizes[0]
    per_token_s = (column[-1] - column[-2]) / (sizes[-1] - sizes[-2])
    return column[-1] + max(per_token_s, 0.0) * (num_tokens - sizes[-1])


def find_table(path: Path, fingerprint: str) -> ModeTable | None:
    """The table stored at ``path``; None if there is no file, or it has another fingerprint.

    Raises:
        EngineError: a file that is no mode table; it says what to do.
    """
    try:
        document = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise EngineError(f"{path}: cannot be read as a mode table ({error}); {WAY_OUT}") from error
    table = ModeTable.from_json(document, where=str(path))
    return table if table.fingerprint == fingerprint else None


def store_table(table: ModeTable, path: Path) -> None:
    """Write ``table`` to ``path`` in one go: a reader sees the old file or the new one.

    Raises:
        EngineError: the folder cannot be written to.
    """
    text = json.dumps(table.to_json(), indent=2) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not by tempfile: only their owner may read its files.
        scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            scratch.write_text(text)
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)
    except OSError as error:
        raise EngineError(
            f"{path}: the mode table cannot be stored ({error.strerror or error}); make the "
            "folder writable, name another one with --mode-table, or leave the option out"
        ) from error
