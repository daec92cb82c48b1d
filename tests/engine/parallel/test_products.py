"""A packed weight multiplies like the plain one, on every rung, from one copy of the same size."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.parallel.few_rows import most_rows
from engine.parallel.packed import can_pack, multiply, pack, place_and_bytes
from engine.parallel.products import (
    PackedInputs,
    PackedOutputs,
    PlainInputs,
    PlainOutputs,
    split_inputs,
    split_outputs,
)
from engine.spec.modes import BASE, SHIFT, Mode

MIDDLE = Mode("2x4")
# The rank of block 2 of four, each 64 wide: base has all, 2x4 the second half, shift its own.
RANGES = {BASE: range(256), MIDDLE: range(128, 256), SHIFT: range(128, 192)}
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2}

packs = pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(dtype, marks=pytest.mark.skipif(not can_pack(dtype), reason="cannot pack"))
        for dtype in TOLERANCES
    ],
)


def _random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype)


@packs
@pytest.mark.parametrize("rows", [0, 1, 5, 70])
def test_packed_outputs_are_those_of_the_plain_weight_on_every_rung(
    dtype: torch.dtype, rows: int
) -> None:
    weight, bias = _random(256, 96, dtype=dtype), _random(256, dtype=dtype, seed=1)
    x = _random(rows, 96, dtype=dtype, seed=2)
    packed = split_outputs(weight, bias, RANGES, may_pack=True)
    plain = split_outputs(weight, bias, RANGES, may_pack=False)
    assert isinstance(packed, PackedOutputs)
    for mode, kept in RANGES.items():
        got = packed(x, mode)
        assert got.shape == (rows, len(kept))
        _close(got, plain(x, mode))


@packs
@pytest.mark.parametrize("rows", [0, 1, 5, 70])
def test_packed_inputs_are_summed_over_their_pieces_on_every_rung(
    dtype: torch.dtype, rows: int
) -> None:
    weight, bias = _random(128, 256, dtype=dtype), _random(128, dtype=dtype, seed=1)
    packed = split_inputs(weight, RANGES, may_pack=True)
    plain = split_inputs(weight, RANGES, may_pack=False)
    assert isinstance(packed, PackedInputs)
    for mode, kept in RANGES.items():
        x = _random(rows, len(kept), dtype=dtype, seed=2)
        _close(packed(x, mode, bias), plain(x, mode, bias))
        _close(packed(x, mode), plain(x, mode))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("rows", [1, 2, 3, 6, 8, 13, 17, 24, 32, 48, 49, 770])
@pytest.mark.parametrize("dtype", list(TOLERANCES))
def test_compiled_products_of_few_rows_are_those_of_onednn(
    dtype: torch.dtype, rows: int, threads: int
) -> None:
    if rows > most_rows(dtype):
        pytest.skip("no compiler, or not these instructions")
    packed = pack(_random(192, 96, dtype=dtype))
    assert packed.few is not None
    by_onednn = replace(packed, few=None)
    x = _random(rows, 200, dtype=dtype, seed=1)[:, 60:156]  # rows apart, as of a split input
    bias, total = _random(192, dtype=dtype, seed=2), _random(rows, 192, dtype=dtype, seed=3)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        _close(multiply(x, packed, bias), multiply(x, by_onednn, bias))
        added = multiply(x, packed, total=total)
    finally:
        torch.set_num_threads(before)
    _close(added, multiply(x, by_onednn, total=total))


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 9, 33, 49])
@pytest.mark.parametrize("dtype", list(TOLERANCES))
def test_few_rows_meet_a_plain_weight_like_many(dtype: torch.dtype, rows: int) -> None:
    weight, bias = (_random(*shape, dtype=dtype) for shape in ((96, 64), (96,)))
    kept = {BASE: range(96), SHIFT: range(32, 64), MIDDLE: range(90, 96)}
    product = split_outputs(weight, bias, kept, may_pack=False)
    x = _random(rows, 200, dtype=dtype, seed=1)[:, 60:124]  # rows apart
    for mode, cut in kept.items():
        want = F.linear(x.float(), weight.float(), bias.float())[:, cut.start : cut.stop]
        _close(product(x, mode), want.to(dtype))


@packs
def test_packing_leaves_one_copy_of_the_same_size(dtype: torch.dtype) -> None:
    weight = _random(256, 192, dtype=dtype)
    for product in (
        split_outputs(weight, None, RANGES, may_pack=True),
        split_inputs(weight, {BASE: range(192), SHIFT: range(96)}, may_pack=True),
    ):
        places = dict(place_and_bytes(tensor) for tensor in product.tensors)
        assert sum(places.values()) == weight.nbytes
        assert weight.data_ptr() not in places


@packs
def test_a_weight_that_packing_would_pad_stays_plain(dtype: torch.dtype) -> None:
    narrow = {BASE: range(40), SHIFT: range(20)}
    outputs = split_outputs(_random(40, 24, dtype=dtype), None, narrow, may_pack=True)
    assert isinstance(outputs, PlainOutputs)
    inputs = split_inputs(_random(40, 40, dtype=dtype), narrow, may_pack=True)
    assert isinstance(inputs, PlainInputs)


def test_float64_stays_plain() -> None:
    product = split_outputs(_random(64, 64, dtype=torch.float64), None, RANGES, may_pack=True)
    assert isinstance(product, PlainOutputs)


def _close(got: Tensor, want: Tensor) -> None:
    """Sums may be rounded in another order: near in units of the largest of them."""
    assert got.dtype == want.dtype
    most = float(want.float().abs().max()) if want.numel() else 0.0
    torch.testing.assert_close(got, want, rtol=0, atol=TOLERANCES[got.dtype] * max(1.0, most))
