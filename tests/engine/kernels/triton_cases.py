"""Cases of the Triton kernels, drawn by seed, each compared with torch's version.

On a CPU they run in Triton's interpreter, which is chosen before Triton is imported::

    TRITON_INTERPRET=1 python -m tests.engine.kernels.triton_cases --count 200 --seed 1
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor

from engine.kernels.gpu import overlap, scaled
from engine.kernels.gpu.layer import TritonKernels
from engine.kernels.gpu.one_row import one_row
from engine.kernels.gpu.tables import StepShape
from engine.parallel.quantised import Quantised, quantise, row_scales
from engine.spec.quantisation import WeightFormat
from tests.engine.kernels.layer_world import Heads, World, assert_near

# The interpreter multiplies bfloat16 wrongly, so that dtype is compared on devices only.
INTERPRETED_DTYPES = (torch.float32, torch.float16)
DEVICE_DTYPES = (*INTERPRETED_DTYPES, torch.bfloat16)
DEVICE_HEADS = (
    Heads(num_kv=8, num_q=32, head_dim=128, block_size=16),
    Heads(num_kv=1, num_q=7, head_dim=64, block_size=32),
    Heads(num_kv=3, num_q=3, head_dim=80, block_size=12),
)
NEW_TOKENS = (1, 1, 1, 2, 5, 33, 140)
CACHED_TOKENS = (0, 1, 16, 63, 300)
LONG_CACHED_TOKENS = (0, 1, 16, 63, 700, 5000)
FIRST_WITH_FP8 = 89


@dataclass(frozen=True, kw_only=True)
class Draw:
    """How cases are drawn; ``device`` says where they run."""

    device: torch.device
    rng: np.random.Generator

    @property
    def is_interpreted(self) -> bool:
        return self.device.type == "cpu"

    def one_of(self, *values: int) -> int:
        return int(self.rng.choice(values))

    def dtype(self) -> torch.dtype:
        known = INTERPRETED_DTYPES if self.is_interpreted else DEVICE_DTYPES
        return known[self.one_of(*range(len(known)))]

    def heads(self) -> Heads:
        """Any; on a device some, since each kind of heads is compiled for seconds."""
        if not self.is_interpreted:
            return DEVICE_HEADS[self.one_of(*range(len(DEVICE_HEADS)))]
        num_kv = self.one_of(1, 2, 3)
        return Heads(
            num_kv=num_kv,
            num_q=num_kv * self.one_of(1, 2, 3, 4, 7, 8),
            head_dim=self.one_of(8, 24, 64, 80, 128),
            block_size=self.one_of(1, 4, 12, 16, 32),
        )

    def tensor(self, *shape: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
        drawn = torch.from_numpy(self.rng.standard_normal(shape) * scale)
        return drawn.to(self.device, dtype)


def attention_case(draw: Draw) -> str:
    """A step of any mix of sequences, in its own shape or padded as a graph's is."""
    heads = draw.heads()
    cached = CACHED_TOKENS if draw.is_interpreted else LONG_CACHED_TOKENS
    sequences = [
        (draw.one_of(*NEW_TOKENS), draw.one_of(*cached)) for _ in range(draw.one_of(1, 2, 4))
    ]
    dtype, has_norm = draw.dtype(), bool(draw.one_of(0, 1))
    seed, is_padded = draw.one_of(*range(1000)), bool(draw.one_of(0, 1))
    world = World(sequences, heads, dtype, has_norm=has_norm, seed=seed, device=draw.device)
    text = f"{sequences} {heads} {dtype} norm={has_norm} seed={seed} padded={is_padded}"
    kernels = Padded(world) if is_padded else TritonKernels(shape=world.shape, rope=world.rope)
    got, got_cache = world.attend(kernels)
    want, want_cache = world.attend(world.reference())
    assert_near(got, want, text)
    assert_near(got_cache.keys, want_cache.keys, text)
    assert torch.equal(got_cache.values, want_cache.values), text
    assert not got[world.num_tokens :].any(), text
    return text


class Padded(TritonKernels):
    """Kernels whose steps have the shape of a graph's: more places of each kind than are used."""

    def __init__(self, world: World) -> None:
        super().__init__(shape=world.shape, rope=world.rope)

    def step(self, tables, num_rows):
        shape = StepShape.largest(num_rows, tile_tokens=self.tile_tokens, has_prefill=True)
        return self.step_of(tables, shape)


def norm_case(draw: Draw) -> str:
    """The sum and its norm."""
    rows, width = draw.one_of(0, 1, 5, 40), draw.one_of(8, 50, 64, 1024, 4096)
    dtype, has_delta = draw.dtype(), bool(draw.one_of(0, 1))
    text = f"norm of {rows} x {width} {dtype} delta={has_delta}"
    world = World([(1, 0)], Heads(), dtype, device=draw.device)
    x = draw.tensor(rows, width, dtype=dtype, scale=4)
    delta = draw.tensor(rows, width, dtype=dtype, scale=4) if has_delta else None
    weight = draw.tensor(width, dtype=dtype)
    sums = [x.clone(), x.clone()]
    versions = (TritonKernels(shape=world.shape, rope=world.rope), world.reference())
    got, want = (
        kernels.add_norm(total, delta, weight)
        for kernels, total in zip(versions, sums, strict=True)
    )
    assert_near(got, want, text)
    assert_near(*sums, text)
    return text


def gate_case(draw: Draw) -> str:
    """The gate, of one block and of several."""
    rows, blocks = draw.one_of(1, 3, 40), draw.one_of(1, 2, 3)
    width, dtype = draw.one_of(1, 6, 64, 1408), draw.dtype()
    text = f"gate of {rows} x {blocks} x {width} {dtype}"
    world = World([(1, 0)], Heads(), dtype, device=draw.device)
    gate_up = draw.tensor(rows, 2 * blocks * width, dtype=dtype, scale=8)
    got = TritonKernels(shape=world.shape, rope=world.rope).silu_mul(gate_up, blocks)
    assert_near(got, world.reference().silu_mul(gate_up, blocks), text)
    return text


def one_row_case(draw: Draw) -> str:
    """One row times columns of a weight."""
    outputs, inputs, skipped = (
        draw.one_of(1, 5, 64),
        draw.one_of(8, 50, 1024, 2048),
        draw.one_of(0, 8),
    )
    dtype, has_bias = draw.dtype(), bool(draw.one_of(0, 1))
    text = f"1 x {inputs} by {outputs}, {skipped} columns skipped, {dtype} bias={has_bias}"
    x = draw.tensor(1, inputs, dtype=dtype)
    weight = draw.tensor(outputs, inputs + skipped, dtype=dtype, scale=inputs**-0.5)[:, skipped:]
    bias = draw.tensor(outputs, dtype=dtype) if has_bias else None
    wide = None if bias is None else bias.float()
    want = torch.nn.functional.linear(x.float(), weight.float(), wide).to(dtype)
    assert_near(one_row(x, weight, bias), want, text)
    return text


def scaled_case(draw: Draw) -> str:
    """Rows times columns of a quantised weight, as they are and rounded to fp8; and one row."""
    rows, outputs = draw.one_of(1, 5, 17, 70, 130), draw.one_of(1, 33, 70)
    inputs, group = draw.one_of(64, 96, 320), draw.one_of(0, 32, 128)
    form = list(WeightFormat)[draw.one_of(0, 1)]
    dtype, has_bias = draw.dtype(), bool(draw.one_of(0, 1))
    text = f"{rows} x {inputs} by {outputs} {form} group={group} {dtype} bias={has_bias}"
    weight = drawn_weight(draw, outputs, inputs, group, form)
    plain = weight.plain(torch.float32)
    x = draw.tensor(rows, inputs, dtype=dtype, scale=inputs**-0.5)
    bias = draw.tensor(outputs, dtype=dtype) if has_bias else None
    wide = None if bias is None else bias.float()
    parts = weight.values, weight.scales, weight.group, bias
    want = torch.nn.functional.linear(x.float(), plain, wide).to(dtype)
    assert_near(scaled.product(x, None, *parts), want, text)
    assert_near(scaled.one_row(x[:1], *parts), want[:1], text)
    if form is WeightFormat.FP8 and dtype != torch.float32:
        rounded = as_groups(*scaled.quantise_rows(x, group or inputs), group or inputs)
        want = torch.nn.functional.linear(rounded.plain(torch.float32), plain, wide).to(dtype)
        got = scaled.product(rounded.values, rounded.scales, *parts, dtype=dtype)
        assert_near(got, want, f"{text}, rounded")
    return text


def rounded_case(draw: Draw) -> str:
    """Rows rounded to fp8, in groups of columns that may not divide them."""
    rows, inputs, group = draw.one_of(1, 3, 7), draw.one_of(32, 200, 500), draw.one_of(32, 128)
    text = f"{rows} x {inputs} to fp8 in groups of {group}"
    x = draw.tensor(rows, inputs, dtype=draw.dtype(), scale=8)
    values, scales = scaled.quantise_rows(x, group)
    padded = torch.nn.functional.pad(x.float(), (0, -inputs % group)).view(rows, -1, group)
    wanted = row_scales(padded, values.dtype)
    torch.testing.assert_close(scales, wanted[:, :, 0].t(), msg=text)
    exact = (padded / wanted).to(values.dtype).float().flatten(1)[:, :inputs]
    is_other = (values.float() - exact).abs() > exact.abs() / 8 + 2**-9
    if draw.is_interpreted:  # it loses what rounding up to a power of two carries over
        is_other &= exact.frexp().mantissa.abs() != 0.5
    assert not bool(is_other.any()), text
    return text


def drawn_weight(
    draw: Draw, outputs: int, inputs: int, group: int, form: WeightFormat
) -> Quantised:
    """The last columns of a wider weight, with a scale a row or one a ``group``."""
    skipped = group or 32
    weight = quantise(draw.tensor(outputs, skipped + inputs, dtype=torch.float32), form)
    if group:
        num_groups = -(-(skipped + inputs) // group)
        scales = weight.scales * draw.tensor(num_groups, outputs, dtype=torch.float32).abs()
        weight = as_groups(weight.values, scales, group)
    return weight.columns(range(skipped, skipped + inputs))


def as_groups(values: Tensor, scales: Tensor, group: int) -> Quantised:
    return Quantised(values=values, scales=scales, group=group)


CASES = (attention_case, norm_case, gate_case, one_row_case, scaled_case, rounded_case)


def compare(device: torch.device, *, count: int, seed: int) -> list[str]:
    """``count`` cases of each kernel; what was compared.

    Raises:
        AssertionError: a kernel and its reference differ, with the case.
    """
    draw = Draw(device=device, rng=np.random.default_rng(seed))
    return [case(draw) for _ in range(count) for case in CASES]


def compile_all(capability: int) -> None:
    """Compile every kernel for a GPU that is not here, overlapping launches where it can."""
    from tests.engine.compiled import compiling

    can_overlap = (capability // 10, capability % 10) >= overlap.LEAST_CAPABILITY
    overlap.overlapped = lambda _: {"is_overlapped": can_overlap}
    with compiling(capability=capability) as found:
        for dtype, heads in zip(DEVICE_DTYPES, DEVICE_HEADS, strict=True):
            world = World([(1, 50), (40, 30)], heads, dtype, has_norm=True)
            kernels = TritonKernels(shape=world.shape, rope=world.rope)
            world.attend(kernels)
            x = torch.zeros(1, 4096, dtype=dtype)
            kernels.add_norm(x, x, x[0])
            kernels.silu_mul(x, 1)
            one_row(x, x, None)
            _multiply_quantised(dtype, has_fp8=capability >= FIRST_WITH_FP8)
    missing = {"_add_norm_kernel", "_silu_mul_kernel", "_one_row_kernel", "_place_heads_kernel"}
    missing |= {"_decode_kernel", "_join_kernel", "_prefill_kernel"}
    missing |= {"_scaled_row_kernel", "_scaled_product_kernel"}
    if capability >= FIRST_WITH_FP8:
        missing.add("_quantise_kernel")
    assert not missing - found.keys(), missing - found.keys()
    for name, kernels in found.items():
        overlapping = {"griddepcontrol" in kernel.asm["ptx"] for kernel in kernels}
        assert overlapping == {can_overlap}, name


def _multiply_quantised(dtype: torch.dtype, *, has_fp8: bool) -> None:
    """Few rows and many times weights of every kind that a device keeps."""
    for form, group in product(WeightFormat, (64, 128, 256)):
        if form is WeightFormat.FP8 and not has_fp8:
            continue
        weight = quantise(torch.ones(256, 256), form)
        scales = weight.scales.expand(256 // group, -1).contiguous()
        for num_rows in (1, 16, 64, 256):
            x = torch.zeros(num_rows, 256, dtype=dtype)
            if form is WeightFormat.FP8 and dtype != torch.float32:
                x_scales = scaled.quantise_rows(x, group)
                scaled.product(*x_scales, weight.values, scales, group, x[0], dtype=dtype)
            else:
                scaled.product(x, None, weight.values, scales, group, None)
        scaled.one_row(x[:1], weight.values, scales, group, None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--show", action="store_true", help="print each case")
    parser.add_argument("--compile", type=int, help="only compile, for 90 as of an H200")
    asked = parser.parse_args()
    if asked.compile is not None:
        compile_all(asked.compile)
        return
    done = compare(torch.device(asked.device), count=asked.count, seed=asked.seed)
    if asked.show:
        print("\n".join(done))
    print(f"{len(done)} cases on {asked.device}: all agree")


if __name__ == "__main__":
    main()
