"""``python -m tuner.calibration.served --data FOLDER --out FOLDER``: profiles of serving systems.

Fits host times and front end on published closed-loop runs and writes one
``BACKEND.json`` each. ``arctic.json`` is vLLM's with what its documentation says besides;
``gearshift.json`` is this engine's own and is not written here.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from tuner.backends import Backend, load_profile
from tuner.backends.backend import (
    UNMEASURED_INTERVAL,
    Fitted,
    HeldOutGroup,
    HostShares,
)
from tuner.calibration.served_fit import (
    Fold,
    Parameter,
    fit_folds,
    relative_errors,
    with_values,
)
from tuner.calibration.served_rows import FILE, read_served_rows, sha256_of
from tuner.calibration.systems import LICENCE
from tuner.hardware import Launch
from tuner.spec.errors import TunerError

OVERHEADS = "vidur/a100_cpu_overheads_2023.csv.gz"
PARTS = {
    "schedule": "schedule_median",
    "input": "prepare_inputs_e2e_median",
    "sample": "sampler_e2e_median",
    "output": "process_model_outputs_median",
}
MS = 1e-3
VERSION = 3
# Fitted for every system: (part, name, start, how far off it may be). The host's times per step
# and per sequence start from a 2023 engine's, see :func:`measured_host`.
HOST = (("step_s", 0.5e-3), ("seq_s", 10e-6))
COMMON = (
    Parameter(part="host", name="request_s", start=2e-3, spread=2e-3),
    Parameter(part="front_end", name="request_s", start=4e-3, spread=3e-3),
    Parameter(part="front_end", name="prompt_token_s", start=1e-6, spread=1e-6),
)
# Sampling and output, half of that engine's work per sequence, begin with a step's results.
EXPOSED = Parameter(part="host", name="exposed_seq_s", start=2.3e-5, spread=4e-5)
# Systems whose answers are made by the process that sends them: ``token_s`` has that work, and the
# host's does not.
SENDING_APART = ("trtllm",)
# What systems differ in. TensorRT-LLM replays graphs only in steps of decodes alone, by default
# (its documentation), and starts every kernel of the others from Python: an eager step of 32 layers
# takes engines in Python some 15 ms. Its server streams from one process of Python by default. A
# server that does nothing else was published to send 24,000 tokens a second
# (tenstorrent/tt-inference-server, pull request 1961), and vLLM's was not yet what held up 11,200
# (pull request 11636): a token takes between 4e-5 and 9e-5 s.
OWN = {
    "trtllm": (
        Parameter(part="host", name="prompt_layer_s", start=4.5e-4, spread=2e-4),
        Parameter(part="front_end", name="token_s", start=6.5e-5, spread=2.5e-5),
        # Sampling alone.
        replace(EXPOSED, start=1.1e-5),
    ),
    "vllm": (EXPOSED,),
}
# Kernel factors are not fitted: served runs cannot tell them from the host's times. A profile's are
# from published timings of single products, see its source.
SOURCES = {
    "vllm": (
        "fitted on closed-loop runs of vLLM 0.10.2 (asynchronous scheduling) and 0.12.0; shares "
        "of the host's work as measured in a 2023 engine (Vidur, A100); limits are the "
        "documented defaults of the API server on H100; what stages of a pipeline add in 0.8 is "
        "fitted on published runs over two nodes (python -m tuner.calibration.pipeline), and not "
        "known from 0.9 on, whose engine is another"
    ),
    "trtllm": (
        "fitted on closed-loop runs of TensorRT-LLM 1.0 to 1.2, whose steps with prompts are not "
        "replayed from graphs by default; shares of the host's work as "
        "measured in a 2023 engine (Vidur, A100); limits are trtllm-serve's documented defaults; "
        "products of weights with one scale take 0.78 of the curves' time, which hold a pass that "
        "rounds activations: its scales are known before, and published timings of a product with "
        "and without that pass differ by so much (vLLM, pull request 17126); "
        "block-scaled products are DeepGEMM's, by a law of its published timings"
    ),
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder of measurements")
    parser.add_argument("--out", type=Path, required=True, help="where profiles are written")
    parser.add_argument("--system", action="append", choices=SOURCES, help="this one alone")
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args(arguments)
    try:
        for name in options.system or SOURCES:
            profile = fit_backend(name, options.data, processes=options.processes)
            _write(profile, options.out)
            if name == "vllm":
                _write(arctic_of(profile), options.out)
    except TunerError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def parameters_of(name: str, data: Path) -> tuple[Parameter, ...]:
    """What is fitted for the system ``name``."""
    measured = host_of(name, data)
    starts = {"step_s": _rounded(measured.step_s), "seq_s": _rounded(measured.seq_s)}
    host = tuple(
        Parameter(part="host", name=field, start=starts[field], spread=spread)
        for field, spread in HOST
    )
    return (*host, *COMMON, *OWN.get(name, ()))


def fit_backend(name: str, data: Path, *, processes: int) -> Backend:
    """The profile of ``name`` fitted on its rows, with its held-out errors."""
    rows = [row for row in read_served_rows(data) if row.backend == name]
    parameters = parameters_of(name, data)
    start = replace(load_profile(name), fitted=None)
    folds = fit_folds(
        rows,
        start,
        parameters,
        processes=processes,
        on_progress=lambda done, total: print(f"{name}: {done} of {total}", file=sys.stderr),
    )
    whole, *held_out = folds
    fitted = Fitted(
        file=FILE,
        sha256=sha256_of(data / FILE),
        rows=len(rows),
        licence=LICENCE,
        command="python -m tuner.calibration.served --data ../shared/silicon --out tuner/backends",
        created=datetime.now(UTC).date().isoformat(),
        parameters=tuple(str(parameter) for parameter in parameters),
        starts=tuple(parameter.start for parameter in parameters),
        spreads=tuple(parameter.spread for parameter in parameters),
        held_out=tuple(held_out_group(fold) for fold in held_out),
    )
    profile = with_values(start, parameters, [_rounded(value) for value in whole.values])
    host = replace(profile.host, shares=host_of(name, data).shares)
    return replace(
        profile,
        version=VERSION,
        source=SOURCES[name],
        host=host,
        interval=held_out_interval(held_out),
        fitted=fitted,
    )


def arctic_of(vllm: Backend) -> Backend:
    """Arctic Inference is a plug-in of vLLM: its host, a second copy of the weights for shift
    mode, and collectives outside of captured graphs there (its documentation; nothing measured)."""
    return replace(
        vllm,
        name="arctic",
        title="Arctic Inference (vLLM plug-in)",
        source=(
            "vllm's profile; by the public code, weights are held a second time for shift and "
            "collectives are issued from Python in both modes"
        ),
        launch=Launch.EAGER,
        shift_launch=Launch.EAGER,
        has_second_weights=True,
        interval=UNMEASURED_INTERVAL,
        release=None,
        releases=(),
        fitted=None,
        step_errors=None,
    )


@dataclass(frozen=True, kw_only=True)
class HostMeasured:
    """Host times of a 2023 engine, as a line over sequences, and its parts' shares."""

    step_s: float
    seq_s: float
    shares: HostShares


def host_of(name: str, data: Path) -> HostMeasured:
    """What of :func:`measured_host` the scheduler's process of the system ``name`` does."""
    measured = measured_host(data)
    if name not in SENDING_APART:
        return measured
    shares = measured.shares
    kept = 1 - shares.output
    schedule, sample = (round(share / kept, 3) for share in (shares.schedule, shares.sample))
    return HostMeasured(
        step_s=kept * measured.step_s,
        seq_s=kept * measured.seq_s,
        shares=HostShares(
            schedule=schedule, input=round(1 - schedule - sample, 3), sample=sample, output=0.0
        ),
    )


def measured_host(data: Path) -> HostMeasured:
    """Scheduling, input, sampling and output of Vidur's profile at two tensor-parallel ranks,
    without the messages of its Ray workers.

    Raises:
        TunerError: the file is missing.
    """
    path = data / OVERHEADS
    if not path.exists():
        raise TunerError(f"{path}: no such file; give the folder that holds {OVERHEADS}")
    with gzip.open(path, "rt") as file:
        rows = [raw for raw in csv.DictReader(file) if raw["tensor_parallel_degree"] == "2"]
    seqs = np.array([float(raw["batch_size"]) for raw in rows])
    parts = {
        part: MS * np.array([float(raw[column]) for raw in rows]) for part, column in PARTS.items()
    }
    total = sum(parts.values(), np.zeros(len(rows)))
    seq_s, step_s = np.polyfit(seqs, total, 1)
    share = {part: round(float(parts[part].sum() / total.sum()), 3) for part in PARTS}
    share["output"] = round(1.0 - share["schedule"] - share["input"] - share["sample"], 3)
    return HostMeasured(step_s=float(step_s), seq_s=float(seq_s), shares=HostShares(**share))


def held_out_group(fold: Fold) -> HeldOutGroup:
    """A fold's error on its own group."""
    assert fold.group is not None, "the fit on all rows holds nothing out"
    errors = relative_errors(fold.rows, fold.simulated)
    ttft, tpot = np.nanmedian(np.abs(errors), axis=0)
    return HeldOutGroup(
        group=fold.group,
        rows=len(fold.rows),
        ttft=round(float(ttft), 4),
        tpot=round(float(tpot), 4),
        values=tuple(_rounded(value) for value in fold.values),
    )


def held_out_interval(folds: Sequence[Fold]) -> float:
    """The 90th percentile of |log(simulated / measured)| TPOT over all held-out rows."""
    tpot = np.concatenate([relative_errors(fold.rows, fold.simulated)[:, 1] for fold in folds])
    return round(float(np.nanquantile(np.abs(np.log1p(tpot)), 0.9)), 3)


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _write(profile: Backend, folder: Path) -> None:
    path = folder / f"{profile.name}.json"
    path.write_text(json.dumps(profile.to_json(), indent=2) + "\n")
    print(path)
    for group in profile.fitted.held_out if profile.fitted else ():
        print(f"  {group.group}: held out TTFT {group.ttft:.1%}, TPOT {group.tpot:.1%}")


if __name__ == "__main__":
    sys.exit(main())
