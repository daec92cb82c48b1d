"""Checks the CUDA path on this machine's GPU and writes a dated report: ``make gpu-check``.

    python3 -m benchmarks.gpu_check --out benchmarks/reports/2026-11-29-gpu-check.md

It needs torch, Triton and what the engine needs, and no network. Without a GPU the report says so
and holds what can be counted without one.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.gpu_check.model import PRESET, write_config
from benchmarks.gpu_check.report import (
    command_section,
    counted_section,
    environment_section,
    kernel_section,
    step_section,
    test_section,
)
from engine.spec.model import ModelConfig

SECTIONS = ("tests", "kernels", "steps", "sums", "sampling", "driver", "counts")
# A machine may be lent for minutes: what has not begun by then is left out.
MOST_S = 420.0
SAMPLING = ("--rows=1,128", "--dtypes=bfloat16", "--rounds=5")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="file of the report; printed too")
    parser.add_argument("--only", nargs="*", choices=SECTIONS, default=SECTIONS)
    asked = parser.parse_args()
    has_gpu = torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as folder:
        model = write_config(Path(folder), PRESET)
        made: dict[str, Callable[[], str]] = {
            "counts": lambda: counted_section(model),
        }
        if has_gpu:
            made |= _gpu_sections(Path(folder), model)
        sections = [environment_section(has_gpu=has_gpu)]
        print(sections[0], flush=True)
        started_s = time.monotonic()
        for name in SECTIONS:
            if name in asked.only and name in made:
                begun_s = time.monotonic()
                if begun_s - started_s > MOST_S and name != "counts":
                    sections.append(f"## Not run, the time was over: {name}")
                else:
                    sections.append(made[name]())
                print(sections[-1], f"({name}: {time.monotonic() - begun_s:.0f} s)", flush=True)
                if asked.out is not None:  # each at once: the machine may be lent for minutes
                    asked.out.write_text("\n\n".join(sections) + "\n")


def _gpu_sections(folder: Path, model: ModelConfig) -> dict[str, Callable[[], str]]:
    from benchmarks.gpu_check.kernels import KernelBench
    from benchmarks.gpu_check.steps import measure_steps
    from benchmarks.gpu_check.sums import sum_section
    from benchmarks.gpu_check.timing import measure_ceilings

    ceilings = measure_ceilings()
    return {
        "tests": test_section,
        "kernels": lambda: kernel_section(ceilings, KernelBench(model, ceilings).run()),
        "sums": sum_section,
        "sampling": lambda: command_section("Sampling", "benchmarks.gpu_sampling", *SAMPLING),
        "driver": lambda: command_section("The driver", "benchmarks.nvml_check"),
        "steps": lambda: step_section(measure_steps(folder, model, ceilings)),
    }


if __name__ == "__main__":
    main()
