"""Of one packed weight each mode reads its part, or multiplies with pieces: as the plain weight."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.kernels.native_build import NO_COMPILER_VARIABLE, find_compiler
from engine.parallel import int8
from engine.parallel.few_rows import KINDS, has_parts
from engine.parallel.few_rows_library import find_few_rows
from engine.parallel.packed import can_pack, place_and_bytes
from engine.parallel.products import PackedInputs, PackedOutputs, split_inputs, split_outputs
from engine.parallel.quantised import Quantised, quantise
from engine.parallel.shards import (
    Ranges,
    Shards,
    Weight,
    packed_shards,
    parts_of_whole,
    pieces_between_cuts,
)
from engine.spec.modes import BASE, SHIFT, Mode
from engine.spec.quantisation import WeightFormat

MIDDLE = Mode("2x4")
# Block 2 of four, each 128 wide: base has all, 2x4 the second half, shift its own.
RANGES = {BASE: range(512), MIDDLE: range(256, 512), SHIFT: range(256, 384)}
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
ROWS = (0, 1, 2, 3, 6, 13, 33, 48, 49, 100, 770)

way_to_pack = pytest.mark.parametrize("pack_shards", [parts_of_whole, pieces_between_cuts])
of_dtypes = pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(dtype, marks=pytest.mark.skipif(not can_pack(dtype), reason="cannot pack"))
        for dtype in TOLERANCES
    ],
)
read_in_place = pytest.mark.skipif(
    not has_parts(KINDS[torch.float32]), reason="no compiler, or not these instructions"
)
compiled = pytest.mark.skipif(find_compiler() is None, reason="no compiler")
PackShards = Callable[..., Shards | None]


@pytest.fixture(params=[1, 2])
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def _random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _close(got: Tensor, want: Tensor) -> None:
    """``want`` is exact; sums are rounded to the dtype, of pieces once each."""
    most = float(want.abs().max()) if want.numel() else 0.0
    atol = TOLERANCES[got.dtype] * max(1.0, most)
    torch.testing.assert_close(got.double(), want, rtol=0, atol=atol)


def _pack(pack_shards: PackShards, weight: Weight, ranges: Ranges, *, dim: int) -> Shards:
    shards = pack_shards(weight, ranges, dim=dim)
    if shards is None:
        pytest.skip("no parts here of this dtype")
    return shards


@way_to_pack
@of_dtypes
@pytest.mark.usefixtures("_threads")
def test_outputs_of_every_mode_are_those_of_the_plain_weight(
    pack_shards: PackShards, dtype: torch.dtype
) -> None:
    weight, bias = _random(512, 160, dtype=dtype), _random(512, dtype=dtype, seed=1)
    product = PackedOutputs(_pack(pack_shards, weight, RANGES, dim=0), bias)
    for rows in ROWS:
        x = _random(rows, 200, dtype=dtype, seed=rows)[:, 20:180]  # rows apart
        want = F.linear(x.double(), weight.double(), bias.double())
        for mode, kept in RANGES.items():
            _close(product(x, mode), want[:, kept.start : kept.stop])


@way_to_pack
@of_dtypes
@pytest.mark.usefixtures("_threads")
def test_inputs_of_every_mode_are_those_of_the_plain_weight(
    pack_shards: PackShards, dtype: torch.dtype
) -> None:
    weight, bias = _random(192, 512, dtype=dtype), _random(192, dtype=dtype, seed=1)
    product = PackedInputs(_pack(pack_shards, weight, RANGES, dim=1))
    for rows in ROWS:
        whole = _random(rows, 512, dtype=dtype, seed=rows)
        for mode, kept in RANGES.items():
            x, own = whole[:, kept.start : kept.stop], weight[:, kept.start : kept.stop]
            want = F.linear(x.double(), own.double())
            _close(product(x, mode), want)
            _close(product(x.contiguous(), mode, bias), want + bias.double())


@read_in_place
def test_parts_may_begin_at_any_float_input() -> None:
    ranges = {BASE: range(304), SHIFT: range(101, 203), MIDDLE: range(101, 304)}
    weight = _random(64, 304)
    product = PackedInputs(_pack(parts_of_whole, weight, ranges, dim=1))
    for rows in ROWS:
        for mode, kept in ranges.items():
            x = _random(len(kept), rows, seed=rows).t()  # neighbours apart
            want = F.linear(x.double(), weight[:, kept.start : kept.stop].double())
            _close(product(x, mode), want)


@read_in_place
def test_a_shard_that_begins_within_a_block_of_outputs_is_packed_in_pieces() -> None:
    ranges = {BASE: range(192), SHIFT: range(32, 96)}
    weight, x = _random(192, 64), _random(70, 64, seed=1)
    assert parts_of_whole(weight, ranges, dim=0) is None
    product = split_outputs(weight, None, ranges, may_pack=True)
    for mode, kept in ranges.items():
        _close(product(x, mode), F.linear(x.double(), weight[kept.start : kept.stop].double()))


@way_to_pack
@of_dtypes
def test_one_copy_of_the_same_size_serves_every_mode(
    pack_shards: PackShards, dtype: torch.dtype
) -> None:
    for dim, weight in enumerate((_random(512, 192, dtype=dtype), _random(192, 512, dtype=dtype))):
        shards = _pack(pack_shards, weight, RANGES, dim=dim)
        places = dict(place_and_bytes(tensor) for tensor in shards.tensors)
        assert sum(places.values()) == weight.nbytes


@of_dtypes
@pytest.mark.parametrize("rows", [1, 7, 40, 130])
def test_base_of_a_shift_plan_gives_the_bits_of_the_plan_without(
    dtype: torch.dtype, rows: int
) -> None:
    if not has_parts(KINDS[dtype]):
        pytest.skip("pieces here, which are rounded one by one")
    tall, wide = _random(512, 192, dtype=dtype), _random(192, 512, dtype=dtype, seed=1)
    alone = {BASE: range(512)}
    x, gated = _random(rows, 192, dtype=dtype, seed=2), _random(rows, 512, dtype=dtype, seed=3)
    with_shift, without = (
        split_outputs(tall, None, ranges, may_pack=True)(x, BASE) for ranges in (RANGES, alone)
    )
    assert torch.equal(with_shift, without)
    with_shift, without = (
        split_inputs(wide, ranges, may_pack=True)(gated, BASE) for ranges in (RANGES, alone)
    )
    assert torch.equal(with_shift, without)


@of_dtypes
def test_without_a_compiler_pieces_are_multiplied_by_onednn(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(NO_COMPILER_VARIABLE, "1")
    find_few_rows.cache_clear()
    try:
        tall, wide = _random(512, 192, dtype=dtype), _random(192, 512, dtype=dtype, seed=1)
        outputs = split_outputs(tall, None, RANGES, may_pack=True)
        inputs = split_inputs(wide, RANGES, may_pack=True)
        assert isinstance(outputs, PackedOutputs)
        assert outputs.find_pieces(BASE) is None
        for mode, kept in RANGES.items():
            cut = slice(kept.start, kept.stop)
            x, gated = _random(33, 192, dtype=dtype), _random(33, 512, dtype=dtype)[:, cut]
            _close(outputs(x, mode), F.linear(x.double(), tall[cut].double()))
            _close(inputs(gated, mode), F.linear(gated.double(), wide[:, cut].double()))
    finally:
        monkeypatch.undo()
        find_few_rows.cache_clear()


def _exact(x: Tensor, weight: Quantised) -> Tensor:
    return F.linear(x.double(), weight.values.double() * weight.scales.double().t())


@compiled
@way_to_pack
@of_dtypes
@pytest.mark.usefixtures("_threads")
def test_int8_of_every_mode_is_the_numbers_it_stands_for(
    pack_shards: PackShards, dtype: torch.dtype
) -> None:
    # Inputs begin and end within tiles of 64.
    columns = {BASE: range(400), MIDDLE: range(200, 400), SHIFT: range(200, 300)}
    tall, wide = (
        quantise(_random(*shape), WeightFormat.INT8) for shape in ((512, 100), (192, 400))
    )
    bias = _random(512, dtype=dtype, seed=1)
    outputs = PackedOutputs(_pack(pack_shards, tall, RANGES, dim=0), bias)
    inputs = PackedInputs(_pack(pack_shards, wide, columns, dim=1))
    for rows in ROWS:
        x, gated = (_random(rows, size, dtype=dtype, seed=rows) for size in (100, 400))
        for mode in RANGES:
            cut = slice(RANGES[mode].start, RANGES[mode].stop)
            _close(outputs(x, mode), _exact(x, tall.rows(RANGES[mode])) + bias[cut].double())
            part = gated[:, columns[mode].start : columns[mode].stop]
            _close(inputs(part, mode), _exact(part, wide.columns(columns[mode])))


@compiled
def test_int8_shards_that_begin_within_a_group_of_outputs_are_packed_in_pieces() -> None:
    weight, odd = (
        quantise(_random(96, 64), WeightFormat.INT8),
        {BASE: range(96), SHIFT: range(8, 40)},
    )
    assert parts_of_whole(weight, odd, dim=0) is None
    narrow = quantise(_random(40, 64), WeightFormat.INT8)  # its last group is narrower
    assert parts_of_whole(narrow, {BASE: range(64), SHIFT: range(32)}, dim=1) is None
    assert (parts_of_whole(narrow, {BASE: range(40), SHIFT: range(16, 40)}, dim=0) is not None) == (
        int8.has_parts()
    )
    shards = packed_shards(weight, odd, dim=0)
    assert shards is not None
    x = _random(70, 64, seed=1)
    _close(PackedOutputs(shards, None)(x, SHIFT), _exact(x, weight.rows(odd[SHIFT])))
