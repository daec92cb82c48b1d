"""Products with quantised weights: views, numbers, and on a GPU every kind against float32."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.parallel.packed import place_and_bytes
from engine.parallel.products import QuantisedInputs, QuantisedOutputs, split_inputs, split_outputs
from engine.parallel.quantised import (
    Quantised,
    can_keep,
    join_rows,
    multiply,
    quantise,
    rounds_inputs,
    row_scales,
)
from engine.spec.modes import BASE, SHIFT, Mode
from engine.spec.quantisation import WeightFormat

MIDDLE = Mode("2x4")
# The rank of block 2 of four, each 64 wide: base has all, 2x4 the second half, shift its own.
RANGES = {BASE: range(256), MIDDLE: range(128, 256), SHIFT: range(128, 192)}
# Columns that share a scale: all of a row, or runs of them.
GROUPS = (None, 32, 64)
ON_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
# Outputs and inputs as layers of 8B and 70B models have them on 1 to 8 ranks, and odd ones.
SHAPES = ((6144, 4096), (14_336, 4096), (4096, 1792), (8192, 3584), (1024, 8192), (200, 416))
ROWS = (1, 2, 16, 33, 64, 129, 2048)


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@cache
def _row_by_row(rows: int, columns: int, form: WeightFormat) -> Quantised:
    return quantise(_random(rows, columns), form)


def _weight(rows: int, columns: int, form: WeightFormat, group: int | None) -> Quantised:
    """Random numbers, with a scale a row or one for each ``group`` columns."""
    found = _row_by_row(rows, columns, form)
    if group is None:
        return found
    scales = found.scales * _random(-(-columns // group), rows, seed=1).abs()
    return Quantised(values=found.values, scales=scales, group=group)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("form", [WeightFormat.FP8, WeightFormat.INT8])
def test_every_rung_multiplies_with_views_of_the_same_numbers_and_scales(
    form: WeightFormat, group: int | None
) -> None:
    tall, wide = _weight(256, 96, form, group), _weight(96, 256, form, group)
    bias = _random(256, seed=2)
    outputs = split_outputs(tall, bias, RANGES, may_pack=False)
    inputs = split_inputs(wide, RANGES, may_pack=False)
    assert isinstance(outputs, QuantisedOutputs)
    assert isinstance(inputs, QuantisedInputs)
    assert [x.data_ptr() for x in outputs.tensors[:2]] == [x.data_ptr() for x in tall.tensors]
    held = dict(place_and_bytes(x) for x in inputs.tensors)
    assert sum(held.values()) == 96 * 256 + 4 * wide.scales.numel()
    for mode, kept in RANGES.items():
        cut = slice(kept.start, kept.stop)
        x, part = _random(5, 96, seed=3), _random(5, len(kept), seed=4)
        want = F.linear(x, tall.plain(torch.float32)[cut], bias[cut])
        torch.testing.assert_close(outputs(x, mode), want)
        want = F.linear(part, wide.plain(torch.float32)[:, cut])
        torch.testing.assert_close(inputs(part, mode), want)


@pytest.mark.parametrize(("form", "worst"), [(WeightFormat.FP8, 2**-4), (WeightFormat.INT8, 0.5)])
def test_a_row_is_rounded_by_half_a_step_of_its_own(form: WeightFormat, worst: float) -> None:
    weight = _random(7, 50) * torch.tensor([[1e-6], [1.0], [1e4], [0.0], [3.0], [1.0], [2.0]])
    found = quantise(weight, form)
    away = (found.plain(torch.float32) - weight).abs()
    scales = found.scales.t()
    step = scales if form is WeightFormat.INT8 else torch.maximum(weight.abs(), scales * 2**-5)
    assert bool((away <= 1.001 * worst * step).all())
    assert torch.equal(found.plain(torch.float32)[3], torch.zeros(50))


def test_weights_with_scales_of_their_own_lie_under_each_other() -> None:
    parts = [_weight(rows, 96, WeightFormat.FP8, 32) for rows in (8, 24)]
    joined = join_rows(parts)
    assert torch.equal(
        joined.plain(torch.float32), torch.cat([part.plain(torch.float32) for part in parts])
    )


@pytest.mark.gpu
@ON_CUDA
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("group", [None, 32, 64, 128])
@pytest.mark.parametrize("form", list(WeightFormat))
def test_products_on_the_device_are_those_of_the_plain_weight_in_float32(
    form: WeightFormat, group: int | None, dtype: torch.dtype
) -> None:
    device = torch.device("cuda")
    if not can_keep(form, dtype, device):
        pytest.skip(f"this device keeps no {form}")
    for outputs, inputs in SHAPES:
        whole = _weight(outputs, 128 + inputs, form, group).to(device)
        columns = whole.columns(range(128, 128 + inputs))
        for weight in (whole, columns, whole.rows(range(outputs // 2, outputs))):
            plain = weight.plain(torch.float32)
            bias = _random(len(plain), seed=5).to(device, dtype)
            for rows in ROWS:
                x = _random(rows, plain.shape[1], seed=rows).to(device, dtype)
                x *= plain.shape[1] ** -0.5
                got = multiply(x, weight, bias)
                assert got.dtype is dtype
                exact = F.linear(_as_multiplied(x, weight), plain, bias.float())
                _assert_near(got, exact, f"{rows} x {inputs} by {outputs}")


def _as_multiplied(x: Tensor, weight: Quantised) -> Tensor:
    """``x`` in float32, rounded as :func:`multiply` says that it is."""
    wide = x.float()
    if x.shape[0] == 1 or not rounds_inputs(x.dtype, weight):
        return wide
    group = weight.group if weight.is_grouped else wide.shape[1]
    parts = F.pad(wide, (0, -wide.shape[1] % group)).view(len(wide), -1, group)
    scales = row_scales(parts, torch.float8_e4m3fn)
    rounded = (parts / scales).to(torch.float8_e4m3fn).float() * scales
    return rounded.flatten(1)[:, : wide.shape[1]]


def _assert_near(got: Tensor, exact: Tensor, case: str) -> None:
    worst = float((got.float() - exact).abs().max() / exact.abs().max())
    assert worst < 0.01, f"{case}: {worst:.2g}"
