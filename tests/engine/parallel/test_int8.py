"""Packed int8 weights multiply as the numbers they stand for, on every rung, from a byte each."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.kernels.native_build import find_compiler
from engine.parallel.int8 import PackedInt8, Way, best_way, pack, unpack
from engine.parallel.int8_library import as_held_on_cpu
from engine.parallel.packed import place_and_bytes
from engine.parallel.products import (
    PackedInputs,
    PackedOutputs,
    QuantisedInputs,
    split_inputs,
    split_outputs,
)
from engine.parallel.quantised import Quantised, multiply, quantise, round_rows
from engine.spec.model import DType, ModelConfig
from engine.spec.modes import BASE, SHIFT, Mode
from engine.spec.quantisation import WeightFormat

# The rank of block 2 of four, each 68 wide: pieces end within tiles and groups of outputs.
RANGES = {BASE: range(272), Mode("2x4"): range(136, 272), SHIFT: range(136, 204)}
# Of the largest result; the results are rounded to the dtype at their end.
TOLERANCES = {torch.float32: 5e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}
ROWS = (0, 1, 6, 33, 70, 300)

compiled = pytest.mark.skipif(find_compiler() is None, reason="no compiler")


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _weight(rows: int, columns: int, form: WeightFormat = WeightFormat.INT8) -> Quantised:
    return quantise(_random(rows, columns), form)


def _exact(x: Tensor, weight: Quantised) -> Tensor:
    return F.linear(x.double(), weight.values.double() * weight.scales.double().t())


def _close(got: Tensor, want: Tensor) -> None:
    most = float(want.abs().max()) if want.numel() else 0.0
    atol = TOLERANCES[got.dtype] * max(1.0, most)
    torch.testing.assert_close(got.double(), want, rtol=0, atol=atol)


@compiled
@pytest.mark.parametrize("dtype", list(TOLERANCES))
def test_every_rung_multiplies_with_one_packed_copy_of_a_byte_a_number(dtype: torch.dtype) -> None:
    tall, wide = _weight(272, 96), _weight(96, 272)
    bias = _random(272, seed=1).to(dtype)
    outputs = split_outputs(tall, bias, RANGES, may_pack=True)
    inputs = split_inputs(wide, RANGES, may_pack=True)
    assert isinstance(outputs, PackedOutputs)
    assert isinstance(inputs, PackedInputs)
    held = sum(dict(place_and_bytes(x) for x in outputs.tensors).values())
    assert held == 272 * 96 + 4 * 272 + bias.nbytes
    for mode, kept in RANGES.items():
        cut = slice(kept.start, kept.stop)
        x, part = _random(5, 96, seed=2).to(dtype), _random(5, len(kept), seed=3).to(dtype)
        _close(outputs(x, mode), _exact(x, tall.rows(kept)) + bias[cut].double())
        added = bias[:96] if len(kept) == 68 else None  # where the part is the whole
        want = _exact(part, wide.columns(kept)) + (0 if added is None else added.double())
        _close(inputs(part, mode, added), want)


@compiled
@pytest.mark.parametrize("way", list(Way))
@pytest.mark.parametrize("dtype", list(TOLERANCES))
def test_any_number_of_rows_is_multiplied_with_bias_or_added(dtype: torch.dtype, way: Way) -> None:
    if way > best_way():
        pytest.skip("not these instructions")
    weight = _weight(203, 100)
    product = PackedInt8(weight, way=way)
    bias = _random(203, seed=4).to(dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for rows in ROWS:
            x = _random(rows, 200, seed=rows).to(dtype)[:, 60:160]  # rows apart
            total = _random(rows, 203, seed=5).to(dtype)
            want = _exact(x, weight)
            _close(product(x), want)
            _close(product(x, bias), want + bias.double())
            _close(product(x, None, total), want + total.double())
    finally:
        torch.set_num_threads(before)


@compiled
@pytest.mark.parametrize("way", list(Way))
@pytest.mark.parametrize("dtype", list(TOLERANCES))
def test_rows_are_rounded_as_by_torch(dtype: torch.dtype, way: Way) -> None:
    if way > best_way():
        pytest.skip("not these instructions")
    for outputs, inputs in ((203, 100), (64, 64), (1, 4), (48, 1028)):
        weight = _weight(outputs, inputs, WeightFormat.W8A8)
        product = PackedInt8(weight, way=way)
        bias = _random(outputs, seed=4).to(dtype)
        for rows in (*ROWS, 24, 25, 97):
            x = _random(rows, inputs + 60, seed=rows).to(dtype)[:, 60:]  # rows apart
            total = _random(rows, outputs, seed=5).to(dtype)
            plain, with_bias = multiply(x, weight), multiply(x, weight, bias)
            _close(product(x), plain.double())
            _close(product(x, bias), with_bias.double())
            _close(product(x, None, total), (plain.float() + total.float()).double())


def test_the_oracle_rounds_within_half_a_unit_of_the_largest() -> None:
    x = _random(9, 300)
    x[1] *= 1e5
    x[2] = 0.0
    rounded, units = round_rows(x)
    assert rounded.abs().amax(1).tolist() == [127, 127, 0, *[127] * 6]
    torch.testing.assert_close(units[:, 0], x.abs().amax(1).clamp_min(1e-12) / 127)
    assert bool(((rounded * units - x).abs() <= units * 0.5001).all())
    halves = torch.tensor([[127.0, 0.5, 1.5, -2.5]])
    assert round_rows(halves)[0].tolist() == [[127.0, 0.0, 2.0, -2.0]], "to even numbers"


@compiled
def test_two_digits_keep_all_of_bfloat16_down_to_a_64th_of_the_largest() -> None:
    weight, x = _weight(64, 256), _random(30, 256).to(torch.bfloat16)
    assert torch.equal(PackedInt8(weight)(x), PackedInt8(weight, digits=2)(x)), "what it gets"
    x[x.abs() * 64 < x.abs().amax(1, keepdim=True)] = 0.0
    exact = _exact(x, weight)
    apart = (PackedInt8(weight, digits=2)(x.float()) - exact).abs().max()
    assert float(apart) < 1e-6 * float(exact.abs().max())


@compiled
def test_outputs_that_are_cut_have_the_bits_of_the_whole_and_inputs_are_within_their_units() -> (
    None
):
    tall, wide = (_weight(*size, WeightFormat.W8A8) for size in ((272, 96), (96, 272)))
    outputs = split_outputs(tall, None, RANGES, may_pack=True)
    inputs = split_inputs(wide, RANGES, may_pack=True)
    x, y = _random(7, 96, seed=2), _random(7, 272, seed=3)
    whole = PackedInt8(tall)(x)
    for mode, kept in RANGES.items():
        assert torch.equal(outputs(x, mode), whole[:, kept.start : kept.stop])
    # Each number is off by half a unit at most, and a part's unit is no larger than the whole's.
    found, exact = inputs(y, BASE), _exact(y, wide)
    bound = wide.plain(torch.float32).abs().sum(1) * round_rows(y)[1] / 2
    assert bool(((found - exact).abs() <= 1.001 * bound).all())
    assert bool((found != exact).any())


@compiled
@pytest.mark.parametrize("form", [WeightFormat.INT8, WeightFormat.W8A8])
def test_a_row_does_not_depend_on_its_company_nor_on_rows_that_are_no_numbers(
    form: WeightFormat,
) -> None:
    product, x = PackedInt8(_weight(64, 128, form)), _random(40, 128)
    x[3] *= 1e6
    x[7, 5], x[9, 0], x[11] = torch.nan, torch.inf, 0.0
    together = product(x)
    for row in (0, 3, 11, 39):
        assert torch.equal(together[row : row + 1], product(x[row : row + 1]))
    assert not bool(together[[7, 9]].isfinite().any())
    assert bool(together[11].eq(0).all())


def test_a_packed_weight_is_as_large_and_gives_back_its_numbers() -> None:
    for rows, columns in ((32, 64), (35, 12), (3, 4)):
        values = _weight(rows, columns).values
        packed = pack(values)
        assert packed.nbytes == values.nbytes
        assert torch.equal(unpack(packed), values)


@compiled
def test_a_weight_whose_cuts_are_no_multiples_of_four_stays_a_view() -> None:
    odd = {BASE: range(92), SHIFT: range(46)}
    assert isinstance(split_inputs(_weight(32, 92), odd, may_pack=True), QuantisedInputs)


def _held(
    folder: Path, form: WeightFormat, dtype: DType = DType.BFLOAT16, *, at_load: bool = True
) -> list[bool]:
    """Whether layers stay in ``form``, and the head is quantised."""
    model = ModelConfig.from_dir(folder).quantised(form)
    assert model.quantisation is not None
    asked = replace(model, quantisation=replace(model.quantisation, at_load=at_load))
    held = as_held_on_cpu(asked, dtype).quantisation
    assert held is not None
    return [held.is_kept, held.has_head]


@compiled
def test_a_cpu_keeps_int8_and_makes_fp8_plain(paced_model_dir: Path) -> None:
    held = partial(_held, paced_model_dir)
    assert held(WeightFormat.INT8) == [True, True]
    assert held(WeightFormat.INT8, at_load=False) == [True, False], "the file has a plain head"
    assert held(WeightFormat.INT8, DType.FLOAT64) == [False, True]
    assert held(WeightFormat.FP8) == [False, False]
    assert held(WeightFormat.W8A8) == [True, True]
    assert held(WeightFormat.W8A8, DType.FLOAT64) == [True, True], "torch rounds rows there"
