"""A profile: operator times of one machine, as versioned JSON. No torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import msgspec

from engine.spec.model import ModelConfig
from engine.spec.quantisation import WeightFormat
from engine.spec.steps import StepSample, StepShape
from tuner.profiling.host_work import HostWork
from tuner.spec.errors import TunerError
from tuner.spec.machine import Fingerprint
from tuner.work.counts import CollectiveKind

SCHEMA = "profile/v1"
# What layers' weights are held in where they are not quantised.
PLAIN = "plain"
# Served steps meet the machine's usual disturbances, so this share is cut off at both ends, of the
# fastest steps like of the slowest.
CUT_SHARE = 0.25


@dataclass(frozen=True, kw_only=True)
class GemmTime:
    """``[m, k] @ [k, n]`` on one rank while ``active_ranks`` ranks do the same."""

    m: int
    n: int
    k: int
    active_ranks: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class AttentionTime:
    """Paged attention of ``num_seqs`` sequences of ``query`` new tokens each, with ``context``
    tokens cached before; ``width`` is query heads times head size on the rank."""

    num_seqs: int
    query: int
    context: int
    width: int
    active_ranks: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class ElementwiseTime:
    """Norms, gate and residuals of one layer for ``tokens`` rows; ``width`` is
    hidden size plus FFN size on the rank."""

    tokens: int
    width: int
    active_ranks: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class CollectiveTime:
    """One collective over ``ranks`` members; ``num_bytes`` is what one rank hands in."""

    kind: CollectiveKind
    ranks: int
    num_bytes: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class PieceTime:
    """A step of a model cut to ``num_layers`` layers, from submit to result, under ``plan``.

    Mean over the middle half of the repeats; ``spread`` is (p90 - p10) / p50 of them.
    ``dispatch_s`` of ``step_s`` lay outside the ranks: the message's way to them and the result's
    way back. A live engine hides it behind the step before.
    """

    plan: str
    num_layers: int
    shape: StepShape
    step_s: float
    communication_s: float
    spread: float
    dispatch_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Took:
    """Seconds that were asked for, that measuring took in all, and those of them that starts and
    the least repeats take however little is asked for."""

    asked_s: float
    total_s: float
    fixed_s: float

    def __add__(self, other: Took) -> Took:
        return Took(
            asked_s=self.asked_s + other.asked_s,
            total_s=self.total_s + other.total_s,
            fixed_s=self.fixed_s + other.fixed_s,
        )


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Everything ``gearshift profile`` measured.

    ``model`` holds the sizes of the profiled model (see ``model_sizes``). ``samples`` are the
    step samples of a short serving run on one rank, ``host_work`` what it took beside its steps.
    ``weights``: what ranks held the layers in, see :func:`weights_of`. ``took`` and ``weights`` are
    None in profiles of older versions.
    """

    fingerprint: Fingerprint
    model: dict[str, Any]
    dtype: str
    link: dict[str, float] | None = None
    gemms: tuple[GemmTime, ...] = ()
    attentions: tuple[AttentionTime, ...] = ()
    elementwise: tuple[ElementwiseTime, ...] = ()
    collectives: tuple[CollectiveTime, ...] = ()
    pieces: tuple[PieceTime, ...] = ()
    samples: tuple[StepSample, ...] = field(default=(), repr=False)
    host_work: tuple[HostWork, ...] = ()
    took: Took | None = None
    weights: str | None = None
    created: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "fingerprint": asdict(self.fingerprint),
            "created": self.created,
            "model": self.model,
            "dtype": self.dtype,
            "link": self.link,
            "gemms": [asdict(row) for row in self.gemms],
            "attentions": [asdict(row) for row in self.attentions],
            "elementwise": [asdict(row) for row in self.elementwise],
            "collectives": [asdict(row) for row in self.collectives],
            "pieces": [msgspec.to_builtins(row) for row in self.pieces],
            "samples": [msgspec.to_builtins(row) for row in self.samples],
            "host_work": [asdict(row) for row in self.host_work],
            "took": asdict(self.took) if self.took else None,
            "weights": self.weights,
        }

    @classmethod
    def from_json(cls, raw: dict[str, Any], *, where: str = "profile") -> Profile:
        """Read a profile back.

        Raises:
            TunerError: another schema, or a part that is missing or of the wrong kind, named.
        """
        if raw.get("schema") != SCHEMA:
            raise TunerError(f"{where}: schema {raw.get('schema')!r} is not {SCHEMA!r}")
        values = {key: value for key, value in raw.items() if key != "schema"}
        try:
            return msgspec.convert(values, cls)
        except msgspec.ValidationError as error:
            raise TunerError(f"{where}: {error}") from error


def weights_of(model: ModelConfig, asked: WeightFormat | None, device: str) -> str:
    """What ranks on ``device`` are told to hold the layers of ``model`` in, quantised as ``asked``
    where the checkpoint is plain: ``plain`` or a format. A CPU makes fp8 plain as it loads.

    Raises:
        CheckpointError: the checkpoint is quantised in another format.
    """
    found = (model if asked is None else model.quantised(asked)).quantisation
    if found is None or (device == "cpu" and not found.format.is_int8):
        return PLAIN
    return found.format.value


def merged(rounds: Sequence[Profile]) -> Profile:
    """One profile of several of the same machine, model, dtype and link.

    It holds the rows of all rounds, and fits average them. So a minute in which the machine was
    slow (a virtual one has neighbours) weighs as one round of several.

    Raises:
        TunerError: no round, or one that differs in what was profiled, named.
    """
    if not rounds:
        raise TunerError("no profile to merge")
    first = rounds[0]
    for other in rounds[1:]:
        for name in ("fingerprint", "model", "dtype", "link", "weights"):
            mine, theirs = getattr(first, name), getattr(other, name)
            if mine != theirs:
                raise TunerError(f"profiles of different {name} cannot be merged: {mine}, {theirs}")
    took = [r.took for r in rounds if r.took is not None]
    return replace(
        first,
        gemms=tuple(row for r in rounds for row in r.gemms),
        attentions=tuple(row for r in rounds for row in r.attentions),
        elementwise=tuple(row for r in rounds for row in r.elementwise),
        collectives=tuple(row for r in rounds for row in r.collectives),
        pieces=tuple(row for r in rounds for row in r.pieces),
        samples=tuple(row for r in rounds for row in r.samples),
        host_work=tuple(row for r in rounds for row in r.host_work),
        took=reduce(add, took) if len(took) == len(rounds) else None,
        created=max(r.created for r in rounds),
    )


def read_json(path: Path) -> dict[str, Any]:
    """One JSON object of a file.

    Raises:
        TunerError: no such file, or no JSON object.
    """
    try:
        parsed = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise TunerError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(parsed, dict):
        raise TunerError(f"{path}: holds {type(parsed).__name__}, not an object")
    return parsed


def trimmed_mean(seconds: Sequence[float]) -> float:
    """Mean of the middle half."""
    cut = int(len(seconds) * CUT_SHARE)
    kept = sorted(seconds)[cut : len(seconds) - cut]
    return sum(kept) / len(kept)
