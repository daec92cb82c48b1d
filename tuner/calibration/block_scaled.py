"""``python -m tuner.calibration.block_scaled``: the laws of block-scaled products, from published
times of two kernels on Hopper, and how they do on shapes that they never saw.

vLLM's CUTLASS kernel on an H100, as vLLM's developers published it (Apache-2.0): ``FITTED`` are of
the kernel alone (benchmarks/kernels/deepgemm, 2025-02); its two shortest calls are left out: they
took the same time at half the bytes, so the host's launches were timed. ``HELD_OUT`` is another
shape of another version, with the pass that rounds activations (pull request 23280, 2025-09).

DeepGEMM: ``DEEP_GEMM_ALONE`` is its own README's (MIT, 2025-02, H800, which is an H100's chip and
memory): single calls on a cool device. ``DEEP_GEMM_IN_TURN`` are vLLM's of long calls one after the
other on an H100 (the table above; shorter ones all took 70 us, which is the host's). At the one
shape that both hold they differ by 1.8: a device that multiplies without a pause lowers its clock.
A served step is neither, and the law lies between.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares

from tuner.calibration.systems import peaks
from tuner.hardware import parse_hardware
from tuner.hardware.block_scaled import CUTLASS, DEEP_GEMM, CutlassLaw, DeepGemmLaw
from tuner.hardware.device import DeviceSpec
from tuner.hardware.physics import FloatArray, gemm_work

DEVICE, FORMAT = "h100", "float8"
US, TERA = 1e-6, 1e12
# What a law may be off by before a row counts less.
ROBUST_LOG = 0.1
# m, n, k, microseconds.
FITTED = (
    (8, 4096, 7168, 34.6), (8, 7168, 18432, 78.9), (8, 18432, 7168, 81.2),
    (64, 4096, 7168, 36.9), (64, 7168, 18432, 87.4), (64, 18432, 7168, 85.0),
    (64, 7168, 16384, 77.9), (128, 4096, 7168, 39.1), (128, 7168, 18432, 93.7),
    (128, 18432, 7168, 85.7), (1024, 4096, 7168, 99.7), (1024, 18432, 7168, 331.3),
    (2048, 4096, 7168, 198.3), (4096, 4096, 7168, 392.2),
)  # fmt: skip
# m, n, k, TFLOP/s.
HELD_OUT = (
    (1, 2112, 7168, 0.893), (16, 2112, 7168, 13.94), (64, 2112, 7168, 55.79),
    (128, 2112, 7168, 106.5), (256, 2112, 7168, 192.5), (512, 2112, 7168, 322.3),
    (1024, 2112, 7168, 350.6), (2048, 2112, 7168, 426.6), (4096, 2112, 7168, 456.9),
    (8192, 2112, 7168, 489.7),
)  # fmt: skip

# m, n, k, TFLOP/s.
DEEP_GEMM_ALONE = (
    (64, 2112, 7168, 206), (64, 24576, 1536, 289), (64, 32768, 512, 219),
    (64, 7168, 16384, 336), (64, 4096, 7168, 287), (64, 7168, 2048, 295),
    (128, 2112, 7168, 352), (128, 24576, 1536, 535), (128, 32768, 512, 358),
    (128, 7168, 16384, 645), (128, 4096, 7168, 533), (128, 7168, 2048, 510),
    (4096, 2112, 7168, 1058), (4096, 24576, 1536, 990), (4096, 32768, 512, 590),
    (4096, 7168, 16384, 1358), (4096, 4096, 7168, 1304), (4096, 7168, 2048, 1025),
)  # fmt: skip
# m, n, k, microseconds.
DEEP_GEMM_IN_TURN = (
    (1024, 4096, 7168, 89.7), (1024, 18432, 7168, 279.0), (2048, 4096, 7168, 175.1),
    (4096, 4096, 7168, 335.4),
)  # fmt: skip


def fitted_rows() -> tuple[FloatArray, FloatArray]:
    """Shapes f8[R, 3] and seconds f8[R] that the law is fitted on."""
    rows = np.array(FITTED)
    return rows[:, :3], rows[:, 3] * US


def held_out_rows() -> tuple[FloatArray, FloatArray]:
    """Shapes and seconds that it never saw."""
    rows = np.array(HELD_OUT)
    return rows[:, :3], _seconds_of(rows)


def deep_gemm_rows() -> tuple[FloatArray, FloatArray]:
    """Shapes f8[R, 3] and seconds f8[R] of both publications, the README's first."""
    alone, in_turn = np.array(DEEP_GEMM_ALONE, dtype=np.float64), np.array(DEEP_GEMM_IN_TURN)
    shapes = np.concatenate([alone[:, :3], in_turn[:, :3]])
    return shapes, np.concatenate([_seconds_of(alone), in_turn[:, 3] * US])


def _seconds_of(rows: FloatArray) -> FloatArray:
    return np.asarray(2.0 * rows[:, :3].prod(axis=1) / (rows[:, 3] * TERA))


def law_seconds(law: CutlassLaw, shapes: FloatArray) -> FloatArray:
    """f8[R] of products of ``shapes`` on the device that was timed."""
    device = parse_hardware(DEVICE).device
    m, n, k = shapes.T
    return law.seconds(_one_scale_s(device, shapes), m=m, n=n, k=k, chip=device.chip)


def deep_gemm_seconds(law: DeepGemmLaw, shapes: FloatArray) -> FloatArray:
    """The same of DeepGEMM's kernel alone."""
    m, n, k = shapes.T
    return law.product_s(m=m, n=n, k=k, chip=parse_hardware(DEVICE).device.chip)


def fit_deep_gemm() -> DeepGemmLaw:
    """Least squares of the log error over both publications: what they differ by are no outliers
    but two states of the device."""
    shapes, seconds = deep_gemm_rows()

    def law(x: npt.NDArray[np.float64]) -> DeepGemmLaw:
        return replace(
            DEEP_GEMM,
            bandwidth=float(x[0]),
            piece_clocks=1e3 * float(x[1]),
            least_clocks=1e2 * float(x[2]),
        )

    def errors(x: npt.NDArray[np.float64]) -> FloatArray:
        return np.asarray(np.log(deep_gemm_seconds(law(x), shapes) / seconds))

    return law(least_squares(errors, (0.8, 0.9, 2.5)).x)


def fit_block_scaled() -> CutlassLaw:
    """Robust least squares of the log error."""
    shapes, seconds = fitted_rows()

    def law(x: npt.NDArray[np.float64]) -> CutlassLaw:
        return replace(CUTLASS, slowdown=float(x[0]), piece_clocks=1e3 * float(x[1]))

    def errors(x: npt.NDArray[np.float64]) -> FloatArray:
        return np.asarray(np.log(law_seconds(law(x), shapes) / seconds))

    return law(least_squares(errors, (1.5, 1.0), loss="soft_l1", f_scale=ROBUST_LOG).x)


def _one_scale_s(device: DeviceSpec, shapes: FloatArray) -> FloatArray:
    assert device.curves is not None, f"{DEVICE} is calibrated"
    m, n, k = shapes.T
    work = gemm_work(peaks(device, FORMAT), m, n, k, operand_bytes=1)
    return device.curves.gemm[FORMAT].seconds(work)


def main() -> None:
    law = fit_block_scaled()
    print(law)
    for name, (shapes, seconds) in (("fitted", fitted_rows()), ("held out", held_out_rows())):
        errors = np.abs(law_seconds(law, shapes) / seconds - 1)
        print(f"{name}: median error {np.median(errors):.1%}, largest {errors.max():.1%}")
    deep_gemm = fit_deep_gemm()
    print(deep_gemm)
    shapes, seconds = deep_gemm_rows()
    errors = deep_gemm_seconds(deep_gemm, shapes) / seconds - 1
    for (m, n, k), error in zip(shapes.tolist(), errors.tolist(), strict=True):
        print(f"  m={m:,.0f}, n={n:,.0f}, k={k:,.0f}: {error:+.0%}")


if __name__ == "__main__":
    main()
