"""Quantised weights and their products.

A weight is one byte a number, ``values[rows, columns]``, and float32 ``scales[groups, rows]``: row
r, column c stands for ``values[r, c] * scales[c // group, r]``. Checkpoints share a scale among all
of a matrix, a row, or a block of rows and columns. Here each row has its own, so that rows are cut
anywhere and matrices with scales of their own lie in one: 4 bytes a row, or for each 128 columns
of it (3 % of the weights). Columns are cut between groups, which the loader makes as narrow as a
plan's cuts ask.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.parallel.int8_library import as_held_on_cpu
from engine.spec.model import DType, ModelConfig
from engine.spec.quantisation import WeightFormat

TORCH_FORMATS = {form: torch.int8 if form.is_int8 else torch.float8_e4m3fn for form in WeightFormat}
# The largest numbers of each format that are used.
MOST = {torch.float8_e4m3fn: 448.0, torch.int8: 127.0}
# Rows of zeros have some scale, too.
LEAST_AMOUNT = 1e-12
# The first whose matrix units multiply fp8.
FP8_CAPABILITY = (8, 9)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# torch's products want both sizes of a weight, and its stride, in multiples of 16 bytes.
ALIGNED = 16


@dataclass(frozen=True, kw_only=True)
class Quantised:
    """A weight or a view of one: ``values[rows, columns]``, ``scales`` f32[groups, rows], of which
    one is for ``group`` columns. ``rounds_rows``: the rows that it is multiplied with are rounded,
    too.
    """

    values: Tensor
    scales: Tensor
    group: int
    rounds_rows: bool = False

    @property
    def tensors(self) -> list[Tensor]:
        return [self.values, self.scales]

    @property
    def shape(self) -> torch.Size:
        return self.values.shape

    @property
    def is_grouped(self) -> bool:
        """Whether a row has several scales."""
        return self.scales.shape[0] > 1

    def rows(self, kept: range) -> Quantised:
        """The view of some rows."""
        cut = slice(kept.start, kept.stop)
        return replace(self, values=self.values[cut], scales=self.scales[:, cut])

    def columns(self, kept: range) -> Quantised:
        """The view of some columns, which begin and end where groups do (or the weight)."""
        scales = self.scales
        if self.is_grouped:
            stop = -(-kept.stop // self.group)
            is_end = kept.stop in (stop * self.group, self.values.shape[1])
            is_whole = is_end and kept.start % self.group == 0
            assert is_whole, f"{kept} cuts a group of {self.group} columns"
            scales = scales[kept.start // self.group : stop]
        return replace(self, values=self.values[:, kept.start : kept.stop], scales=scales)

    def plain(self, dtype: torch.dtype) -> Tensor:
        """The numbers it stands for, ``[rows, columns]``, multiplied in float32."""
        wide = self.scales.t().repeat_interleave(self.group, dim=1)[:, : self.values.shape[1]]
        return (self.values.float() * wide).to(dtype)

    def to(self, device: torch.device) -> Quantised:
        return replace(self, values=self.values.to(device), scales=self.scales.to(device))


def join_rows(parts: Sequence[Quantised]) -> Quantised:
    """Weights of equal columns and groups, one below the other, in memory of their own."""
    first = parts[0]
    # Not all of torch's copies know fp8.
    raw = torch.cat([part.values.view(torch.uint8) for part in parts])
    return replace(
        first,
        values=raw.view(first.values.dtype),
        scales=torch.cat([part.scales for part in parts], dim=1),
    )


def quantise(weight: Tensor, form: WeightFormat) -> Quantised:
    """Each row of ``weight[rows, columns]`` with the scale by which its largest number is the
    format's.
    """
    dtype = TORCH_FORMATS[form]
    scales = row_scales(weight.float(), dtype)
    scaled = (weight.float() / scales).clamp_(-MOST[dtype], MOST[dtype])
    values = (scaled.round_() if form.is_int8 else scaled).to(dtype)
    return Quantised(
        values=values,
        scales=scales.t().contiguous(),
        group=weight.shape[1],
        rounds_rows=form.rounds_rows,
    )


def row_scales(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """``rows[..., n]`` -> f32[..., 1]: what 1 in ``dtype`` stands for in each row."""
    return rows.abs().amax(-1, keepdim=True).float().clamp_min(LEAST_AMOUNT) / MOST[dtype]


@cache
def can_keep(form: WeightFormat, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether ranks that compute in ``dtype`` on the CUDA ``device`` multiply weights of ``form``
    as they are. If not, as on devices before fp8 or without Triton, weights are made plain as they
    load.
    """
    if device.type != "cuda" or dtype not in DTYPES or importlib.util.find_spec("triton") is None:
        return False
    return form.is_int8 or torch.cuda.get_device_capability(device) >= FP8_CAPABILITY


def as_held(
    model: ModelConfig, form: WeightFormat | None, dtype: torch.dtype, device: torch.device
) -> ModelConfig:
    """``model`` as ranks on ``device`` hold it: quantised in ``form`` where it is asked for, and
    made plain where :func:`can_keep` or :func:`as_held_on_cpu` say so.

    Raises:
        CheckpointError: the checkpoint is quantised in another format.
    """
    model = model if form is None else model.quantised(form)
    if model.quantisation is None:
        return model
    if device.type == "cpu":
        return as_held_on_cpu(model, DType(str(dtype).removeprefix("torch.")))
    return model.holding(is_kept=can_keep(model.quantisation.format, dtype, device))


def multiply(x: Tensor, weight: Quantised, bias: Tensor | None = None) -> Tensor:
    """``x[n, columns]`` -> ``[n, rows]`` plus ``bias[rows]``, in the dtype of ``x``.

    On CUDA, only the weights are rounded if they are int8, if ``x`` is float32, or if it has one
    row. Several rows of 16 bits are rounded to fp8 like fp8 weights, each row (or each group of it)
    by a scale of its own, and both are multiplied as they are. On a CPU this is the reference:
    products with the plain weight, which is made anew each time (:mod:`engine.parallel.int8` has
    the fast ones), of rows that are rounded to int8 where the weight asks for it.
    """
    if not x.is_cuda and weight.rounds_rows:
        return _rounded_product(x, weight, bias)
    if not x.is_cuda:
        return F.linear(x, weight.plain(x.dtype), bias)
    from engine.kernels.gpu import scaled  # it needs Triton

    if x.shape[0] == 1:
        return scaled.one_row(x, weight.values, weight.scales, weight.group, bias)
    if not rounds_inputs(x.dtype, weight):
        return scaled.product(x, None, weight.values, weight.scales, weight.group, bias)
    group = weight.group if weight.is_grouped else x.shape[1]
    rounded, x_scales = scaled.quantise_rows(x, group)
    if _can_torch(x.dtype, weight):
        return _torch_product(rounded, x_scales, weight, bias, x.dtype)
    return scaled.product(
        rounded, x_scales, weight.values, weight.scales, weight.group, bias, dtype=x.dtype
    )


def round_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """``x[n, columns]`` -> whole numbers of -127 to 127, and what one of them stands for,
    ``[n, 1]``; both in float32, or float64 where ``x`` is.

    The largest number of a row becomes 127; halves go to even numbers. If a number of a row is not
    finite, neither are the row's products.
    """
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    units = row_scales(x, torch.int8).to(wide)
    return (x.to(wide) * units.reciprocal()).round_(), units


def _rounded_product(x: Tensor, weight: Quantised, bias: Tensor | None) -> Tensor:
    rounded, units = round_rows(x)
    product = F.linear(rounded, weight.plain(rounded.dtype)).mul_(units)
    return (product if bias is None else product.add_(bias)).to(x.dtype)


def rounds_inputs(dtype: torch.dtype, weight: Quantised) -> bool:
    """Whether products on CUDA round what the weight is multiplied with."""
    return weight.values.dtype == torch.float8_e4m3fn and dtype != torch.float32


def _can_torch(dtype: torch.dtype, weight: Quantised) -> bool:
    """Whether ``torch._scaled_mm`` is used: for one scale a row, and numbers aligned as it wants
    them.

    Its own form for blocks reads scales only as whole matrices, not as the views of a rung.
    """
    rows, columns = weight.values.shape
    is_aligned = not (rows % ALIGNED or columns % ALIGNED or weight.values.stride(0) % ALIGNED)
    return not weight.is_grouped and is_aligned and _torch_scales_rows(dtype, weight.values.device)


@cache
def _torch_scales_rows(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether this torch multiplies fp8 with a scale a row on ``device``, found by trying it on a
    view of columns, with a bias.
    """
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(64, 256, generator=generator)
    weight = quantise(rows, WeightFormat.FP8).to(device).columns(range(128, 256))
    x = torch.randn(5, 128, generator=generator)
    rounded = quantise(x, WeightFormat.FP8)
    bias = torch.randn(64, generator=generator).to(device, dtype)
    wanted = F.linear(rounded.plain(torch.float32), weight.plain(torch.float32).cpu())
    wanted += bias.cpu().float()
    try:
        found = _torch_product(
            rounded.values.to(device), rounded.scales.to(device), weight, bias, dtype
        )
    except (RuntimeError, TypeError, ValueError):
        return False
    return torch.allclose(found.cpu().float(), wanted, rtol=0.02, atol=0.02)


def _torch_product(
    rounded: Tensor, x_scales: Tensor, weight: Quantised, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """``rounded[n, columns]`` with ``x_scales[1, n]``."""
    return torch._scaled_mm(
        rounded,
        weight.values.t(),
        scale_a=x_scales.view(-1, 1),
        scale_b=weight.scales.view(1, -1),
        bias=bias,
        out_dtype=dtype,
    )
