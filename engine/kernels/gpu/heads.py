"""Norm and rotation of queries and keys, and the write of keys and values to the cache."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.gpu import overlap
from engine.kernels.gpu.overlap import wait_for_previous
from engine.kernels.gpu.tables import DeviceTables
from engine.kernels.kv_cache import LayerCache
from engine.kernels.layer import HeadShape

HEADS_AT_ONCE = 8


# Triton has no types, and reads annotations as its own.
@triton.jit  # type: ignore[untyped-decorator]
def _place_heads_kernel(  # type: ignore[no-untyped-def]
    qkv_ptr,
    out_ptr,
    norm_ptr,
    rope_ptr,
    slots_ptr,
    positions_ptr,
    keys_ptr,
    values_ptr,
    eps,
    num_q: tl.constexpr,
    num_kv: tl.constexpr,
    half: tl.constexpr,
    has_norm: tl.constexpr,
    heads_block: tl.constexpr,
    half_block: tl.constexpr,
    is_overlapped: tl.constexpr,
):
    wait_for_previous(is_overlapped)
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + row).to(tl.int64)
    heads = (tl.program_id(1) * heads_block + tl.arange(0, heads_block))[:, None]
    dims = tl.arange(0, half_block)[None, :]
    inside = (heads < num_q + 2 * num_kv) & (dims < half)
    if slot < 0:
        # No token: nobody attends for this row, and its answer must be finite.
        at = out_ptr + (row * num_q + heads) * (2 * half) + dims
        nothing = tl.zeros([heads_block, half_block], out_ptr.dtype.element_ty)
        tl.store(at, nothing, mask=inside & (heads < num_q))
        tl.store(at + half, nothing, mask=inside & (heads < num_q))
        return
    at = qkv_ptr + (row * (num_q + 2 * num_kv) + heads) * (2 * half) + dims
    first = tl.load(at, mask=inside, other=0.0)
    second = tl.load(at + half, mask=inside, other=0.0)
    is_turned = heads < num_q + num_kv
    a, b = first.to(tl.float32), second.to(tl.float32)
    if has_norm:
        mean = (tl.sum(a * a, axis=1) + tl.sum(b * b, axis=1)) / (2 * half)
        scale = tl.rsqrt(mean + eps)[:, None]
        weights = norm_ptr + heads * (2 * half) + dims
        inside_norm = inside & is_turned
        w_a = tl.load(weights, mask=inside_norm, other=0.0).to(tl.float32)
        w_b = tl.load(weights + half, mask=inside_norm, other=0.0).to(tl.float32)
        a = (a * scale * w_a).to(qkv_ptr.dtype.element_ty).to(tl.float32)
        b = (b * scale * w_b).to(qkv_ptr.dtype.element_ty).to(tl.float32)
    position = tl.load(positions_ptr + row).to(tl.int64)
    angles = rope_ptr + position * (2 * half) + dims
    cos = tl.load(angles, mask=dims < half, other=0.0)
    sin = tl.load(angles + half, mask=dims < half, other=0.0)
    turned_a = (a * cos - b * sin).to(qkv_ptr.dtype.element_ty)
    turned_b = (b * cos + a * sin).to(qkv_ptr.dtype.element_ty)
    tl.store(at, turned_a, mask=inside & is_turned)
    tl.store(at + half, turned_b, mask=inside & is_turned)
    is_key = inside & is_turned & (heads >= num_q)
    key = keys_ptr + (slot * num_kv + heads - num_q) * (2 * half) + dims
    tl.store(key, turned_a, mask=is_key)
    tl.store(key + half, turned_b, mask=is_key)
    is_value = inside & (heads >= num_q + num_kv)
    value = values_ptr + (slot * num_kv + heads - num_q - num_kv) * (2 * half) + dims
    tl.store(value, first, mask=is_value)
    tl.store(value + half, second, mask=is_value)


def place_heads(
    qkv: Tensor,
    out: Tensor,
    *,
    qk_norm: Tensor | None,
    rope: Tensor,
    cache: LayerCache,
    tables: DeviceTables,
    shape: HeadShape,
) -> None:
    """Norm (where the model has it) and rotate queries and keys of ``qkv`` in place, and write keys
    and values to ``cache``. Rows without a token are zeroed in ``out``, the heads' answers.

    Args:
        qkv: ``[rows, (num_q + 2 num_kv) * hd]``, contiguous.
        out: ``[rows, num_q * hd]``.
        qk_norm: ``[num_q + num_kv, hd]``.
        rope: ``[positions, hd]`` f4, cosines beside sines.
    """
    num_q, num_kv = shape.num_q, shape.cache.num_kv_heads
    half = shape.cache.head_dim // 2
    groups = triton.cdiv(num_q + 2 * num_kv, HEADS_AT_ONCE)
    _place_heads_kernel[(qkv.shape[0], groups)](
        qkv,
        out,
        qkv if qk_norm is None else qk_norm,
        rope,
        tables.slots,
        tables.positions,
        cache.keys,
        cache.values,
        shape.rms_eps,
        num_q=num_q,
        num_kv=num_kv,
        half=half,
        has_norm=qk_norm is not None,
        heads_block=HEADS_AT_ONCE,
        half_block=triton.next_power_of_2(half),
        **overlap.overlapped(qkv),
    )
