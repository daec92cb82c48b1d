"""``python -m tuner.calibration.pipeline --data ../shared/served``: the host's work that pipeline
stages add in vLLM 0.8, from published runs over two nodes, with each load held out once.

There a plan of several stages runs in the older engine, through Ray: the HTTP front end, every
stage's scheduler and the first stage's worker are one process, its outputs are not handled beside
the next step, and each step is a message to the other stages and an answer. So each step adds a
message, and each sequence what its token costs that process. The message starts from Ray's own time
in a 2023 engine (Vidur: 6.2 ms a step at two ranks and more, whatever the batch).
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.optimize import least_squares

from tuner.calibration.served_open import (
    BACKEND,
    DEPLOYMENTS,
    MODEL,
    Deployment,
    read_runs,
    simulate_runs,
    write_runs,
)
from tuner.described.parse import describe_node
from tuner.hardware.physics import FloatArray
from tuner.workload.workload import Workload

PIPELINE = DEPLOYMENTS[1]
# Where the fit starts and how far off that may be; seconds of a step and of a sequence.
STARTS = np.array([6.24e-3, 0.2e-3])
SPREADS = np.array([1.5e-3, 0.2e-3])
ERROR_LOG = 0.05  # what simulated means are off by without a pipeline (the deployment at tp=8)
SEEDS = (0, 1, 2)


@dataclass(frozen=True, kw_only=True)
class PipelineFit:
    """``step_s`` and ``seq_s`` fitted without the load ``held_out`` (None: on all), and the errors
    (simulated over published, minus 1) of mean TPOT by load."""

    held_out: float | None
    step_s: float
    seq_s: float
    errors: dict[float, float]


def traces(deployment: Deployment, data: Path) -> list[Workload]:
    """The deployment's runs, drawn with each of :data:`SEEDS`.

    Raises:
        TunerError: the data are not there.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "runs.csv"
        found = []
        for seed in SEEDS:
            write_runs(path, data, deployment, seed=seed)
            found.append(read_runs(path))
    return found


def fit_pipeline(data: Path) -> list[PipelineFit]:
    """The fit on all loads, then without each."""
    workloads = traces(PIPELINE, data)
    start = _tpot_ms(STARTS, workloads)
    slopes = np.stack(
        [
            (_tpot_ms(STARTS + np.eye(2)[i] * SPREADS / 2, workloads) - start) / (SPREADS[i] / 2)
            for i in range(2)
        ],
        axis=-1,
    )
    published = np.array([means.tpot_ms for means in PIPELINE.runs.values()])

    def fitted(kept: list[int]) -> FloatArray:
        def errors(x: FloatArray) -> FloatArray:
            logs = np.log((start + slopes @ (x - STARTS)) / published)[kept]
            return np.concatenate([logs / ERROR_LOG, (x - STARTS) / SPREADS])

        solved: FloatArray = least_squares(errors, STARTS, x_scale=SPREADS).x
        return solved

    rates = list(PIPELINE.runs)
    found = []
    for out in (None, *rates):
        x = fitted([i for i, rate in enumerate(rates) if rate != out])
        errors = _tpot_ms(x, workloads) / published - 1
        found.append(
            PipelineFit(
                held_out=out,
                step_s=float(x[0]),
                seq_s=float(x[1]),
                errors=dict(zip(rates, errors.tolist(), strict=True)),
            )
        )
    return found


def _tpot_ms(x: FloatArray, workloads: list[Workload]) -> FloatArray:
    """f8[loads] of mean TPOT with these seconds of a step and of a sequence."""
    node = describe_node(model=MODEL, hardware=PIPELINE.hardware, dtype="bf16", backend=BACKEND)
    host = replace(node.backend.host, pipeline_step_s=float(x[0]), pipeline_seq_s=float(x[1]))
    node = replace(node, backend=replace(node.backend, host=host))
    runs = [simulate_runs(node, PIPELINE, workload) for workload in workloads]
    means = np.array([[m.tpot_ms for m in run.values()] for run in runs])
    return np.asarray(means.mean(axis=0))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder of served runs")
    options = parser.parse_args(arguments)
    for fit in fit_pipeline(options.data):
        errors = ", ".join(f"{rate:g}/s {error:+.1%}" for rate, error in fit.errors.items())
        print(
            f"held out {fit.held_out}: {1e3 * fit.step_s:.2f} ms a step, "
            f"{1e3 * fit.seq_s:.3f} ms a sequence; TPOT {errors}"
        )


if __name__ == "__main__":
    main()
