"""Chunks over a prefix as Microsoft published them with Vidur, which no curve was fitted on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tuner.calibration.readers import read_chunked_prefill
from tuner.calibration.systems import peaks
from tuner.hardware import parse_hardware
from tuner.hardware.chunks import chunk_seconds
from tuner.hardware.physics import FloatArray

DATA = Path(__file__).parents[4] / "shared" / "silicon"


@pytest.mark.skipif(not DATA.is_dir(), reason="the published measurements are not beside this")
@pytest.mark.parametrize(("smallest", "largest"), [(64, 256), (256, 1024), (1024, 4096)])
def test_what_a_prefix_adds_to_a_chunk_is_near_what_was_measured(
    smallest: int, largest: int
) -> None:
    device = parse_hardware("a100").device
    curves = device.curves
    assert curves is not None
    columns = read_chunked_prefill(DATA, "a100_llama-2-70b_tp2")
    seqs, queries, prefix, *_ = columns.values.T

    def predicted(cached: FloatArray) -> FloatArray:
        return chunk_seconds(
            curves.prefill,
            peaks(device, "bfloat16"),
            kernel_s=device.kernel_launch_s,
            seqs=seqs,
            queries=queries,
            prefix=cached,
            heads=32.0,
            kv_heads=4.0,
        )

    without = {q: s for q, p, s in zip(queries, prefix, columns.seconds, strict=True) if p == 0}
    added = columns.seconds - np.array([without.get(q, np.nan) for q in queries])
    error = (predicted(prefix) - predicted(0.0 * prefix) - added) / columns.seconds
    chosen = (prefix >= 512) & (queries >= smallest) & (queries < largest) & np.isfinite(error)
    assert np.median(np.abs(error[chosen])) < 0.1
