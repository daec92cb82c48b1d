"""Scales of quantised tensors, as checkpoints keep them: one a matrix, a row, or a block."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.spec.errors import CheckpointError
from engine.spec.quantisation import Quantisation, WeightFormat

# How safetensors calls the formats of quantised weights.
STORED_FORMATS = {form: "I8" if form.is_int8 else "F8_E4M3" for form in WeightFormat}
# Behind a module's name; both are what a number is multiplied with.
SCALE_SUFFIXES = (".weight_scale", ".weight_scale_inv")
# Of activations and of an 8-bit KV cache, which are rounded by scales of their own, or not at all.
OTHER_SCALES = (".input_scale", ".output_scale", ".k_scale", ".v_scale")


def scale_names(name: str) -> tuple[str, ...]:
    """Where the scales of the tensor ``name`` may stand."""
    module = name.removesuffix(".weight")
    return tuple(module + suffix for suffix in SCALE_SUFFIXES)


@dataclass(frozen=True, kw_only=True)
class ScaleGrid:
    """``scales`` f32[..., ...] of a matrix, each of ``rows`` by ``columns`` numbers."""

    scales: Tensor
    rows: int
    columns: int

    def of(self, rows: range, columns: range, group: int) -> Tensor:
        """f32[groups, rows]: one for each row and ``group`` of ``columns``, none of which lies in
        two columns of the grid.
        """
        row_places = torch.arange(rows.start, rows.stop) // self.rows
        column_places = torch.arange(columns.start, columns.stop, group) // self.columns
        return self.scales[row_places][:, column_places].t().contiguous()


def scale_grid(
    found: Tensor, name: str, shape: tuple[int, ...], quantisation: Quantisation
) -> ScaleGrid:
    """The scales ``found`` under ``name`` of a matrix of ``shape``.

    Raises:
        CheckpointError: their shape fits no kind of scale, or they are no finite numbers.
    """
    num_rows, num_columns = shape
    scales = found.float()
    if not bool(scales.isfinite().all()):
        raise CheckpointError(f"tensor {name} has values that are not finite numbers")
    if scales.numel() == 1:
        return ScaleGrid(scales=scales.view(1, 1), rows=num_rows, columns=num_columns)
    if scales.numel() == num_rows and quantisation.block is None:
        return ScaleGrid(scales=scales.view(-1, 1), rows=1, columns=num_columns)
    rows, columns = quantisation.block or (1, num_columns)
    wanted = [-(-num_rows // rows), -(-num_columns // columns)]
    if list(scales.shape) != wanted:
        raise CheckpointError(
            f"tensor {name} has shape {list(scales.shape)}; a matrix of {list(shape)} asks for "
            f"{wanted}, or for one scale"
        )
    return ScaleGrid(scales=scales, rows=rows, columns=columns)
