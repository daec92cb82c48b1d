"""The compiled operations of a layer against torch's, which are the oracle."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.kernels import native_build
from engine.kernels.attention_plan import StepTables
from engine.kernels.choice import layer_kernels
from engine.kernels.cpu_library import find_cpu_library
from engine.kernels.layer import LayerKernels
from engine.kernels.layer_native import NativeKernels
from tests.engine.kernels.layer_world import TOLERANCE, Heads, World, assert_near

DTYPES = st.sampled_from(list(TOLERANCE))

pytestmark = pytest.mark.skipif(find_cpu_library() is None, reason="no C++ compiler here")


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def native(world: World) -> LayerKernels:
    kernels = layer_kernels(world.shape, world.rope)
    assert isinstance(kernels, NativeKernels)
    return kernels


@settings(max_examples=60, deadline=None)
@given(
    sequences=st.lists(
        st.tuples(st.sampled_from([1, 1, 1, 2, 5, 33, 140]), st.sampled_from([0, 1, 16, 63, 700])),
        min_size=1,
        max_size=6,
    ),
    heads=st.builds(
        lambda kv, group, hd, block: Heads(
            num_q=kv * group, num_kv=kv, head_dim=hd, block_size=block
        ),
        st.integers(1, 3),
        st.sampled_from([1, 2, 3, 4, 7]),
        st.sampled_from([8, 24, 64, 80, 128]),
        st.sampled_from([1, 4, 12, 16]),
    ),
    dtype=DTYPES,
    has_norm=st.booleans(),
    threads=st.sampled_from([1, 2]),
    seed=st.integers(0, 99),
)
def test_any_step_attends_as_the_reference_does(
    sequences: list[tuple[int, int]],
    heads: Heads,
    dtype: torch.dtype,
    has_norm: bool,
    threads: int,
    seed: int,
) -> None:
    torch.set_num_threads(threads)
    world = World(sequences, heads, dtype, has_norm=has_norm, seed=seed)
    got, got_cache = world.attend(native(world))
    want, want_cache = world.attend(world.reference())
    assert_near(got, want)
    assert_near(got_cache.keys, want_cache.keys)
    assert torch.equal(got_cache.values, want_cache.values)
    assert not got[world.num_tokens :].any()


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_a_sequence_attends_to_the_bit_alone_as_in_company_on_any_threads(
    dtype: torch.dtype,
) -> None:
    sequences = [(1, 1200), (40, 100), (1, 7), (300, 0), (1, 530)]
    world = World(sequences, Heads(num_q=6), dtype)
    together, _ = world.attend(native(world))
    torch.set_num_threads(2)
    for seq, (length, _) in enumerate(sequences):
        start = int(world.tables.starts[seq])
        one = slice(seq, seq + 1)
        tables = StepTables(
            query_lens=world.tables.query_lens[one],
            context_lens=world.tables.context_lens[one],
            block_tables=world.tables.block_tables[one],
        )
        rows = slice(start, start + length)
        alone, _ = world.attend(native(world), tables, world.qkv[rows])
        assert torch.equal(alone, together[rows])


def test_an_overflow_in_one_sequence_does_not_reach_its_neighbours() -> None:
    world = World([(1, 2), (1, 40), (6, 30), (3, 0)], Heads(), torch.float32)
    blocks = world.tables.block_tables[[1, 1], [0, 1]]
    world.cache.values[blocks] = torch.inf
    world.cache.keys[blocks] = torch.inf
    got, _ = world.attend(native(world))
    assert got[1].isnan().any()
    assert got[[0, *range(2, 11)]].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [1, 40])
def test_what_is_no_number_stays_none(dtype: torch.dtype, length: int) -> None:
    world = World([(length, 50)], Heads(), dtype)
    world.qkv[0] = torch.nan
    got, _ = world.attend(native(world))
    assert got[0].isnan().all()


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(0, 40),
    width=st.sampled_from([8, 50, 64, 1024]),
    dtype=DTYPES,
    has_delta=st.booleans(),
    threads=st.sampled_from([1, 2]),
)
def test_sum_and_norm_are_the_reference_s(
    rows: int, width: int, dtype: torch.dtype, has_delta: bool, threads: int
) -> None:
    torch.set_num_threads(threads)
    world = World([(1, 0)], Heads(), dtype)
    random = torch.Generator().manual_seed(rows)
    x, delta = (4 * torch.randn(2, rows, width, generator=random)).to(dtype).unbind()
    weight = torch.rand(width, generator=random).to(dtype)
    sums = [x.clone(), x.clone()]
    got, want = (
        kernels.add_norm(total, delta if has_delta else None, weight)
        for kernels, total in zip((native(world), world.reference()), sums, strict=True)
    )
    assert_near(got, want)
    assert torch.equal(*sums)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 40),
    num_blocks=st.sampled_from([1, 2, 3]),
    width=st.sampled_from([1, 6, 64, 352]),
    dtype=DTYPES,
    threads=st.sampled_from([1, 2]),
)
def test_the_gate_is_the_reference_s(
    rows: int, num_blocks: int, width: int, dtype: torch.dtype, threads: int
) -> None:
    torch.set_num_threads(threads)
    world = World([(1, 0)], Heads(), dtype)
    random = torch.Generator().manual_seed(rows)
    gate_up = 20 * torch.randn(rows, 2 * num_blocks * width, generator=random)
    gate_up = gate_up.to(dtype)
    got = native(world).silu_mul(gate_up, num_blocks)
    assert_near(got, world.reference().silu_mul(gate_up, num_blocks))


def test_without_a_compiler_torch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native_build.NO_COMPILER_VARIABLE, "1")
    world = World([(1, 0)], Heads(), torch.float32)
    assert layer_kernels(world.shape, world.rope).name == "torch"
