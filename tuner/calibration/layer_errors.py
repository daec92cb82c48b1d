"""How wrong predicted layer times are, by what the fit has not seen."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from tuner.calibration.curve_fit import NUM_FOLDS
from tuner.calibration.fit import fit_kind
from tuner.calibration.groups import carried_over
from tuner.calibration.layers import (
    DEGREES,
    LAYERS,
    Calls,
    LayerCall,
    find_layer_calls,
)
from tuner.calibration.links import Series
from tuner.calibration.systems import Measured
from tuner.calibration.transfer import by_data_sheet, calibrated, collective_by_data_sheet
from tuner.hardware.curves import OperatorCurve, SizeCurve
from tuner.hardware.device import DeviceSpec
from tuner.hardware.physics import FloatArray

BoolArray = npt.NDArray[np.bool_]
LONGEST_SEEN = 4096  # tokens of a prompt or a cache, where longer ones are held out


@dataclass(frozen=True, kw_only=True)
class DeviceData:
    """The measured calls of one device in one number format."""

    device: DeviceSpec
    gemm: Measured
    prefill: Measured
    decode: Measured
    all_reduces: list[Series]

    @cached_property
    def calls(self) -> list[LayerCall]:
        return find_layer_calls(self.gemm, self.prefill, self.decode, self.all_reduces)

    @cached_property
    def fitted(self) -> dict[str, OperatorCurve]:
        """Curves of all calls, by operator."""
        return {measured.name: _fit(measured) for measured in self.operators}

    @property
    def operators(self) -> tuple[Measured, ...]:
        return self.gemm, self.prefill, self.decode

    @cached_property
    def measured(self) -> Calls:
        return Calls(
            gemm_s=self.gemm.seconds,
            prefill_s=self.prefill.seconds,
            decode_s=self.decode.seconds,
            all_reduce_s=np.concatenate([s.seconds for s in self.all_reduces]),
        )


@dataclass(frozen=True, kw_only=True)
class LayerErrors:
    """log(predicted / measured) f8[layers] of the layer calls it names."""

    calls: list[LayerCall]
    logs: FloatArray

    def of_kind(self, kind: str) -> FloatArray:
        return self.logs[[call.kind == kind for call in self.calls]]


def _errors(data: DeviceData, predicted: Calls, calls: list[LayerCall]) -> LayerErrors:
    logs = [np.log(predicted.layer_s(c) / data.measured.layer_s(c)) for c in calls]
    return LayerErrors(calls=calls, logs=np.array(logs))


def interpolating(data: DeviceData, *, seed: int = 0) -> LayerErrors:
    """Every call predicted by a fit without it: a fifth of the calls left out at a time."""
    rng = np.random.default_rng(seed)

    def out_of_fold(measured: Measured) -> FloatArray:
        folds = rng.integers(0, NUM_FOLDS, len(measured.seconds))
        predicted = np.zeros(len(folds))
        for fold in range(NUM_FOLDS):
            held = folds == fold
            predicted[held] = _fit(measured.where(~held)).seconds(measured.work.where(held))
        return predicted

    calls = Calls(
        gemm_s=out_of_fold(data.gemm),
        prefill_s=out_of_fold(data.prefill),
        decode_s=out_of_fold(data.decode),
        all_reduce_s=np.concatenate(
            [s.seconds * np.exp(s.held_out_logs()) for s in data.all_reduces]
        ),
    )
    return _errors(data, calls, data.calls)


def unseen_degree(data: DeviceData, *, is_group_seen: bool = True) -> LayerErrors:
    """Layers at one TP degree by fits that saw no weights or head shape of that degree. With
    ``is_group_seen`` False they saw no all-reduce among that many ranks either.
    """
    found: list[LayerErrors] = []
    for tp in DEGREES:
        weights = {n * 1_000_000 + k for shape in LAYERS for n, k in shape.weights(tp)}
        heads = {h * 1000 + kv for h, kv in (shape.head_shape(tp) for shape in LAYERS)}
        predicted = Calls(
            gemm_s=_without(data.gemm, ~np.isin(data.gemm.groups, list(weights))),
            prefill_s=_without(data.prefill, ~np.isin(data.prefill.groups, list(heads))),
            decode_s=_without(data.decode, ~np.isin(data.decode.groups, list(heads))),
            all_reduce_s=np.concatenate(
                [
                    _at(s.fit().curve, s.num_bytes) if is_group_seen else _other_ranks(s, data)
                    for s in data.all_reduces
                ]
            ),
        )
        found.append(_errors(data, predicted, [c for c in data.calls if c.tp == tp]))
    return _joined(found)


def longer_sequences(data: DeviceData) -> LayerErrors:
    """Prompts and caches beyond :data:`LONGEST_SEEN` by attention that saw only shorter ones."""

    def is_short(measured: Measured) -> BoolArray:
        return np.asarray(measured.columns.values[:, 1] <= LONGEST_SEEN)

    predicted = replace(
        _fitted_on_all(data),
        prefill_s=_without(data.prefill, is_short(data.prefill)),
        decode_s=_without(data.decode, is_short(data.decode)),
    )
    return _errors(data, predicted, [c for c in data.calls if c.length > LONGEST_SEEN])


def unseen_device(
    data: DeviceData, known: DeviceData, *, num_calls: int = 0, seed: int = 0
) -> LayerErrors:
    """By the curves of another device and the data sheets of both; with ``num_calls`` also by so
    many timed calls of prefill and of decode attention, and twice as many products, drawn at
    random."""

    def carried(ours: Measured) -> FloatArray:
        curve = by_data_sheet(known.fitted[ours.name], known.device, data.device)
        if not num_calls:
            return curve.seconds(ours.work)
        count = 2 * num_calls if ours is data.gemm else num_calls
        return calibrated(curve, ours, num_calls=count, seed=seed).seconds(ours.work)

    predicted = Calls(
        gemm_s=carried(data.gemm),
        prefill_s=carried(data.prefill),
        decode_s=carried(data.decode),
        all_reduce_s=np.concatenate(
            [
                _at(
                    collective_by_data_sheet(theirs.fit().curve, known.device, data.device),
                    ours.num_bytes,
                )
                for ours, theirs in zip(data.all_reduces, known.all_reduces, strict=True)
            ]
        ),
    )
    return _errors(data, predicted, data.calls)


# -- parts ---------------------------------------------------------------------------------------


def _fit(measured: Measured) -> OperatorCurve:
    return fit_kind(measured.name)(measured.work, measured.seconds)


def _without(measured: Measured, is_seen: BoolArray) -> FloatArray:
    """Every call by a fit to the seen ones."""
    return _fit(measured.where(is_seen)).seconds(measured.work)


def _fitted_on_all(data: DeviceData) -> Calls:
    return Calls(
        gemm_s=data.fitted[data.gemm.name].seconds(data.gemm.work),
        prefill_s=data.fitted[data.prefill.name].seconds(data.prefill.work),
        decode_s=data.fitted[data.decode.name].seconds(data.decode.work),
        all_reduce_s=np.concatenate([_at(s.fit().curve, s.num_bytes) for s in data.all_reduces]),
    )


def _other_ranks(series: Series, data: DeviceData) -> FloatArray:
    """A collective by those of the other numbers of ranks."""
    others = [s for s in data.all_reduces if s.ranks != series.ranks]
    has_multicast = data.device.link.has_multicast
    return carried_over(series.ranks, series.num_bytes, others, has_multicast=has_multicast)


def _at(curve: SizeCurve, num_bytes: FloatArray) -> FloatArray:
    return np.array([curve.seconds(size) for size in num_bytes])


def _joined(parts: list[LayerErrors]) -> LayerErrors:
    return LayerErrors(
        calls=[call for part in parts for call in part.calls],
        logs=np.concatenate([part.logs for part in parts]),
    )
