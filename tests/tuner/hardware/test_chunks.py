from __future__ import annotations

import numpy as np
import pytest

from tuner.hardware import parse_hardware
from tuner.hardware.chunks import chunk_seconds
from tuner.hardware.physics import FloatArray, Peaks, prefill_work

DEVICE = parse_hardware("a100").device
PEAKS = Peaks(flops_per_s=312e12, bytes_per_s=DEVICE.memory_bytes_per_s, num_sms=DEVICE.num_sms)


def seconds(queries: list[float], prefix: list[float], *, seqs: float = 1.0) -> FloatArray:
    assert DEVICE.curves is not None
    same = np.ones(len(queries))
    return chunk_seconds(
        DEVICE.curves.prefill,
        PEAKS,
        kernel_s=DEVICE.kernel_launch_s,
        seqs=seqs * same,
        queries=np.array(queries),
        prefix=np.array(prefix),
        heads=32.0,
        kv_heads=4.0,
    )


def test_without_a_prefix_a_chunk_is_a_prompt() -> None:
    assert DEVICE.curves is not None
    one = np.ones(1)
    work = prefill_work(
        PEAKS, seqs=one, queries=512 * one, prefix=0 * one, heads=32 * one, kv_heads=4 * one
    )
    assert seconds([512], [0]) == pytest.approx(DEVICE.curves.prefill.seconds(work))


def test_a_longer_prefix_never_takes_less_time() -> None:
    for queries in (16, 64, 256, 1024):
        times = seconds([queries] * 60, list(np.linspace(0, 30_000, 60)))
        assert (np.diff(times) >= 0).all()


def test_a_small_chunk_over_a_long_prefix_still_uses_most_of_the_device() -> None:
    """Tiles are split along the keys: a quarter of the tiles does not mean four times slower."""
    small, large = (float(seconds([q], [16_384])[0]) for q in (128, 512))
    assert small < 0.45 * large


def test_a_prefix_is_never_read_faster_than_memory_allows() -> None:
    cached = 200_000.0
    added = seconds([1], [cached]) - seconds([1], [0])
    assert added[0] > 2 * 2 * 4 * 128 * cached / PEAKS.bytes_per_s
