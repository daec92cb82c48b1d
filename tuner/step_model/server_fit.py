"""Fit of :class:`tuner.step_model.server.ServerSteps` to what was seen of a server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.spec.steps import StepShape
from tuner.spec.errors import TunerError
from tuner.step_model.fit import conformal
from tuner.step_model.operator_fit import FloatArray
from tuner.step_model.operators import Curve
from tuner.step_model.server import ServerSteps

# Rows at which the slope over rows may change. Beyond the last one products are bound by
# arithmetic, and what bends is attention.
KNOTS = (1, 4, 16, 64, 256)
# Each slope is drawn towards the one before it, with the weight of this share of the observations:
# noise in one point must not make a step of eight rows free.
SMOOTHNESS = 1e-4
NUM_OTHERS = 3
# The last slope goes on up to here: more rows than any step has.
FAR = 2**24


@dataclass(frozen=True, kw_only=True)
class SeenSteps:
    """Steps one after the other that took ``seconds`` together, the median over ``repeats`` of
    them; ``spread`` is (most - least) / median. ``name`` says what was asked for."""

    name: str
    shapes: tuple[StepShape, ...]
    seconds: float
    repeats: int
    spread: float


@dataclass(frozen=True, kw_only=True)
class ServerFit:
    """``errors`` are log(seen / fitted without it), in the order of what was seen; the ends of
    the range are left out of none, since nothing on their other side says where they lie."""

    steps: ServerSteps
    errors: tuple[float, ...]

    @property
    def interval(self) -> float:
        """The split-conformal 90 % half width of log(true / fitted) of a step."""
        return conformal(np.abs(np.array(self.errors)))


def fit_server_steps(seen: Sequence[SeenSteps]) -> ServerFit:
    """The law that comes nearest, by relative error, and how far it is off what it never saw.

    Raises:
        TunerError: too little was seen.
    """
    if len(seen) <= NUM_OTHERS + 1:
        raise TunerError(f"{len(seen)} kinds of steps were seen: too few to fit any law to")
    knots = _knots(seen)
    design = np.array([_row(each, knots) for each in seen])
    seconds = np.array([each.seconds for each in seen])
    errors = []
    for index in range(len(seen)):
        rest = np.arange(len(seen)) != index
        found = _fit(design[rest], seconds[rest], knots)
        errors.append(float(np.log(seconds[index] / (design[index] @ found))))
    return ServerFit(steps=_steps(_fit(design, seconds, knots), knots), errors=tuple(errors))


def _knots(seen: Sequence[SeenSteps]) -> tuple[int, ...]:
    """Those between the least and the most rows that were seen."""
    most = max(shape.num_tokens for each in seen for shape in each.shapes)
    return tuple(knot for knot in KNOTS if knot < most)


def _row(seen: SeenSteps, knots: tuple[int, ...]) -> list[float]:
    """Steps, rows beyond each knot, sequences, pairs and context."""
    shapes = seen.shapes
    beyond = [float(sum(_between(shape.num_tokens, knots, k) for shape in shapes)) for k in knots]
    return [
        float(len(shapes)),
        *beyond,
        float(sum(shape.num_seqs for shape in shapes)),
        float(sum(shape.prefill_attention_pairs for shape in shapes)),
        float(sum(shape.decode_context_tokens for shape in shapes)),
    ]


def _between(tokens: int, knots: tuple[int, ...], knot: int) -> int:
    """Rows of ``tokens`` from ``knot`` up to the next one."""
    later = [other for other in knots if other > knot]
    top = later[0] if later else tokens
    return max(0, min(tokens, top) - knot)


def _fit(design: FloatArray, seconds: FloatArray, knots: tuple[int, ...]) -> FloatArray:
    """Coefficients, none below 0: a fixed part, a slope from each knot, and the others."""
    smooth = []
    weight = float(np.sqrt(SMOOTHNESS * len(seconds)))
    scale = float(np.median(seconds))
    for index in range(1, len(knots)):
        width = knots[index] - knots[index - 1]
        row = np.zeros(design.shape[1])
        row[index], row[index + 1] = weight * width / scale, -weight * width / scale
        smooth.append(row)
    # Relative errors: each row is divided by what was seen, and the smooth ones aim at 0.
    x = np.vstack([design / seconds[:, None], *smooth])
    y = np.concatenate([np.ones(len(seconds)), np.full(len(smooth), 0.0)])
    return _solved(x, y)


def _solved(x: FloatArray, y: FloatArray) -> FloatArray:
    from scipy.optimize import nnls

    norms = np.maximum(np.linalg.norm(x, axis=0), 1e-300)
    found: FloatArray = nnls(x / norms, y)[0] / norms
    return found


def _steps(found: FloatArray, knots: tuple[int, ...]) -> ServerSteps:
    fixed_s, slopes, others = found[0], found[1:-NUM_OTHERS], found[-NUM_OTHERS:]
    x, y = [float(knots[0])], [float(fixed_s)]
    for knot, after, slope in zip(knots, [*knots[1:], FAR], slopes, strict=True):
        x.append(float(after))
        y.append(y[-1] + float(slope) * (after - knot))
    per_seq_s, per_pair_s, per_context_s = map(float, others)
    return ServerSteps(
        rows=Curve(x=tuple(x), y=tuple(y)),
        per_seq_s=per_seq_s,
        per_pair_s=per_pair_s,
        per_context_s=per_context_s,
    )
