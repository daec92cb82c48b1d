"""Paged attention against a plain loop over sequences, heads and tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.kernels import attention_plan
from engine.kernels.attention import attention
from engine.kernels.attention_plan import CacheShape, StepTables, plan_attention
from engine.kernels.kv_cache import LayerCache, allocate_cache
from engine.kernels.rotary import RotaryAngles, rotary
from engine.kernels.silu_mul import silu_mul

HEAD_DIM, BLOCK_SIZE = 8, 4
CPU = torch.device("cpu")


def one_by_one(
    queries: torch.Tensor, cache: LayerCache, tables: StepTables, num_q: int, num_kv: int
) -> torch.Tensor:
    """Each token and head alone, straight from the definition, after the cache was written."""
    out = torch.empty(len(queries), num_q, HEAD_DIM, dtype=queries.dtype)
    row = 0
    for seq, (length, context) in enumerate(
        zip(tables.query_lens, tables.context_lens, strict=True)
    ):
        for offset in range(length):
            positions = np.arange(context + offset + 1)
            blocks = tables.block_tables[seq, positions // BLOCK_SIZE]
            for head in range(num_q):
                kv = head * num_kv // num_q
                keys = cache.keys[blocks, positions % BLOCK_SIZE, kv]
                values = cache.values[blocks, positions % BLOCK_SIZE, kv]
                shares = torch.softmax(keys @ queries[row, head] / HEAD_DIM**0.5, dim=0)
                out[row, head] = shares @ values
            row += 1
    return out.flatten(1)


def random_step(
    rng: np.random.Generator, sequences: list[tuple[int, int]], num_q: int, num_kv: int
) -> tuple[StepTables, LayerCache, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tables, a cache with content and new q, k, v of (new tokens, cached tokens) sequences."""
    widths = [-(-(new + cached) // BLOCK_SIZE) for new, cached in sequences]
    blocks = rng.permutation(sum(widths) + 3).astype(np.int32)
    tables = np.full((len(sequences), max(widths)), -1, dtype=np.int32)
    for seq, width in enumerate(widths):
        tables[seq, :width], blocks = blocks[:width], blocks[width:]
    cache = allocate_cache(
        num_blocks=sum(widths) + 3,
        block_size=BLOCK_SIZE,
        num_kv_heads=num_kv,
        head_dim=HEAD_DIM,
        dtype=torch.float64,
        device=CPU,
    )
    cache.keys.copy_(torch.from_numpy(rng.normal(size=cache.keys.shape)))
    cache.values.copy_(torch.from_numpy(rng.normal(size=cache.values.shape)))
    total = sum(new for new, _ in sequences)
    q, k, v = (
        torch.from_numpy(rng.normal(size=(total, heads, HEAD_DIM)))
        for heads in (num_q, num_kv, num_kv)
    )
    step = StepTables(
        query_lens=np.array([new for new, _ in sequences]),
        context_lens=np.array([cached for _, cached in sequences]),
        block_tables=tables,
    )
    return step, cache, q, k, v


def shape_of(num_kv: int, dtype: torch.dtype = torch.float64) -> CacheShape:
    return CacheShape(
        block_size=BLOCK_SIZE, num_kv_heads=num_kv, head_dim=HEAD_DIM, dtype=dtype, device=CPU
    )


sequences_strategy = st.lists(
    st.tuples(st.sampled_from([1, 1, 1, 2, 5, 9]), st.sampled_from([0, 1, 3, 4, 17, 60])),
    min_size=1,
    max_size=9,
)


@settings(max_examples=40, deadline=None)
@given(
    sequences=sequences_strategy,
    heads=st.sampled_from([(4, 4), (4, 2), (4, 1), (1, 1)]),
    seed=st.integers(0, 99),
    budget=st.sampled_from([1, 500, 10**6]),
)
def test_any_mix_of_decodes_and_chunks_attends_as_one_token_at_a_time(
    sequences: list[tuple[int, int]], heads: tuple[int, int], seed: int, budget: int
) -> None:
    num_q, num_kv = heads
    step, cache, q, k, v = random_step(np.random.default_rng(seed), sequences, num_q, num_kv)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_plan, "MAX_BATCH_ELEMENTS", budget)
        plan = plan_attention(step, shape_of(num_kv))
    got = attention(q, k, v, cache=cache, plan=plan)
    want = one_by_one(q, cache, step, num_q, num_kv)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrower_dtypes_stay_near_float64(dtype: torch.dtype) -> None:
    sequences = [(1, 30), (1, 5), (6, 0), (4, 9)]
    step, cache, q, k, v = random_step(np.random.default_rng(0), sequences, 4, 2)
    want = attention(q, k, v, cache=cache, plan=plan_attention(step, shape_of(2)))
    narrow = LayerCache(keys=cache.keys.to(dtype), values=cache.values.to(dtype))
    plan = plan_attention(step, shape_of(2, dtype))
    got = attention(q.to(dtype), k.to(dtype), v.to(dtype), cache=narrow, plan=plan)
    assert got.dtype is dtype
    torch.testing.assert_close(got.double(), want, rtol=0.05, atol=0.05)


def test_an_overflow_in_one_sequence_does_not_reach_its_neighbours() -> None:
    step, cache, q, k, v = random_step(np.random.default_rng(0), [(1, 2), (1, 40)], 2, 1)
    cache.values[step.block_tables[1, 0]] = torch.inf
    cache.keys[step.block_tables[1, 0]] = torch.inf
    got = attention(q, k, v, cache=cache, plan=plan_attention(step, shape_of(1)))
    assert got[0].isfinite().all()


def test_decodes_of_similar_length_share_a_batch_and_long_ones_run_apart() -> None:
    sequences = [(1, 20), (1, 21), (1, 3000), (1, 19), (3, 0)]
    step, *_ = random_step(np.random.default_rng(0), sequences, 1, 1)
    plan = plan_attention(step, shape_of(1))
    assert sorted(batch.num_seqs for batch in plan.decodes) == [1, 3]
    assert len(plan.prefills) == 1
    assert plan.prefills[0].mask is None


def test_rotation_is_the_complex_product_of_the_halves_of_a_head() -> None:
    x = torch.randn(5, 3, 8, dtype=torch.float64)
    radians = torch.randn(5, 1, 4, dtype=torch.float64)
    cos, sin = radians.cos(), radians.sin()
    angles = RotaryAngles(cos=torch.cat((cos, cos), -1), sin=torch.cat((-sin, sin), -1))
    turned = torch.complex(x[..., :4], x[..., 4:]) * torch.polar(torch.ones_like(radians), radians)
    torch.testing.assert_close(rotary(x, angles), torch.cat((turned.real, turned.imag), -1))


def test_silu_mul_reads_gate_and_up_block_by_block() -> None:
    gate, up = torch.randn(4, 6, dtype=torch.float64), torch.randn(4, 6, dtype=torch.float64)
    want = gate / (1 + (-gate).exp()) * up
    for num_blocks in (1, 2, 3):
        parts = [
            half
            for pair in zip(gate.chunk(num_blocks, 1), up.chunk(num_blocks, 1), strict=True)
            for half in pair
        ]
        torch.testing.assert_close(silu_mul(torch.cat(parts, 1), num_blocks), want)
