"""The sections of the report, in Markdown."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from benchmarks.gpu_check.steps import DECODES, StepRow, layer_bytes
from engine.spec.model import ModelConfig

if TYPE_CHECKING:
    from benchmarks.gpu_check.kernels import KernelTime
    from benchmarks.gpu_check.timing import Ceilings

ROOT = Path(__file__).parents[2]
TEST_PROCESSES = 6
COMMAND_S = 90.0


def environment_section(*, has_gpu: bool) -> str:
    """What was run, where."""
    import triton

    device = "**not run on a GPU**: no CUDA device here"
    if has_gpu:
        properties = torch.cuda.get_device_properties(0)
        device = (
            f"{properties.name}, {properties.multi_processor_count} multiprocessors, "
            f"{properties.total_memory / 2**30:.0f} GiB"
        )
    return f"""# The CUDA path, checked

* Date: {time.strftime("%Y-%m-%d")}
* Device: {device}
* Versions: Python {platform.python_version()}, torch {torch.__version__},
  Triton {triton.__version__}
* Command: `python3 -m benchmarks.gpu_check --out FILE` (`make gpu-check`)"""


def kernel_section(ceilings: Ceilings, rows: Iterable[KernelTime]) -> str:
    """Each kernel beside its floor."""
    lines = [
        f"""## Kernels, at the shapes of an 8B model in bf16

Ceilings measured in this run: a large copy moves {ceilings.bytes_per_s / 1e12:.2f} TB/s (read and
written), a product of 4,096 x 4,096 runs at {ceilings.flops_per_s / 1e12:.0f} TFLOP/s. A floor is
the bytes (each read and written once) or the products over its ceiling. Times are medians in a CUDA
graph over inputs that the caches do not hold; for few rows they are a launch, not the work.

| kernel | shape | us | floor, us | share of the ceiling | torch's, us |
|---|---|---:|---:|---:|---:|"""
    ]
    for row in rows:
        other = "" if row.other_us is None else f"{row.other_us:.1f}"
        lines.append(
            f"| {row.name} | {row.shape} | {row.us:.1f} | {row.floor_us:.1f} "
            f"| {row.share:.0%} | {other} |"
        )
    return "\n".join(lines)


def step_section(rows: Iterable[StepRow]) -> str:
    """Whole steps beside their floors."""
    lines = [
        """## Steps of an 8B-shaped model in bf16 (random weights, 32 layers)

Preparation, forward pass and greedy sampling, with the next step always queued. The floor of a
decode step is what it must read (weights but the embedding, the cache) over the copy's bandwidth;
of a prefill its products over the matrix rate. *clock*: from step to step; *device*: of the step.

| step | floor, ms | graphs: clock, ms | share | device, ms | no graphs: clock, ms | device, ms |
|---|---:|---:|---:|---:|---:|---:|"""
    ]
    lines += [
        f"| {row.name} | {1e3 * row.floor_s:.2f} ({row.floor_of}) "
        f"| {1e3 * row.graphs.clock_s:.2f} | **{row.share:.0%}** "
        f"| {1e3 * row.graphs.device_s:.2f} | {1e3 * row.eager.clock_s:.2f} "
        f"| {1e3 * row.eager.device_s:.2f} |"
        for row in rows
    ]
    return "\n".join(lines)


def test_section() -> str:
    """What the tests that need a GPU say."""
    files = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "tests" / "engine").rglob("test_*.py"))
        if "pytest.mark.gpu" in path.read_text()
    ]
    done = subprocess.run(
        [
            # Without the suite's own options, whose plug-ins may not be there.
            *(sys.executable, "-m", "pytest", "-q", "-m", "gpu", "--override-ini=addopts="),
            *(["-n", str(TEST_PROCESSES)] if importlib.util.find_spec("xdist") else []),
            # The suite's own conftest needs databases.
            *("--confcutdir=tests/engine", "-p", "no:cacheprovider", "-p", "no:benchmark"),
            *files,
        ],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
    )
    lines = done.stdout.strip().splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    shown = "\n".join(f"* {line}" for line in failed)
    if done.returncode:
        print(done.stdout, done.stderr)
    return f"""## Tests on the device

`pytest -m gpu` over {len(files)} files: {lines[-1] if lines else done.stderr}
{shown}"""


def command_section(title: str, module: str, *words: str) -> str:
    """What another benchmark prints."""
    head = f"## {title}: `python3 -m {' '.join((module, *words))}`\n\n"
    try:
        done = subprocess.run(
            [sys.executable, "-m", module, *words],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
        )
    except subprocess.TimeoutExpired:
        return f"{head}Not done within {COMMAND_S:.0f} s."
    lines = [line for line in done.stdout.splitlines() if not line.startswith("# ")]
    if done.returncode:
        lines += ["", f"Failed: {(done.stderr.strip().splitlines() or ['without a word'])[-1]}"]
    return head + "\n".join(lines).strip()


def counted_section(model: ModelConfig) -> str:
    """What needs no GPU: launches of a step, and the bytes of a layer."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_check.launches"],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "0", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        return f"## Counted, on any machine\n\nNot counted here: {done.stderr.splitlines()[-1]}"
    counts = json.loads(done.stdout)
    found = counts[-1]
    per_layer = ", ".join(f"{name} {count}" for name, count in sorted(found["per_layer"].items()))
    lines = []
    for (seqs, context), each in zip(DECODES, counts, strict=True):
        floor = layer_bytes(model, seqs, context)
        moved = each["layer_bytes"] + 4 * seqs * context * model.kv_size
        lines.append(
            f"| {seqs} x {context:,} | {floor / 1e6:.1f} MB | {moved / 1e6:.1f} MB "
            f"| {moved / floor:.3f} |"
        )
    rows = "\n".join(lines)
    return f"""## Counted, on any machine

Launches of a layer in a decode step: {sum(found["per_layer"].values())}
({per_layer}).
Of a step of {found["num_layers"]} layers {found["per_step"]}, which are one launch in a CUDA graph,
and {found["tail"]} of final norm and head. No operation of them has a tensor of the host, waits for
the device or has a shape that depends on data.

| decode step | a layer must read | its launches move | over what it must |
|---|---:|---:|---:|
{rows}"""
