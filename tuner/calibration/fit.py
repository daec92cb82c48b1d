"""``python -m tuner.calibration.fit --data FOLDER --out FOLDER``: curves of every measured device.

Reads published measurements and writes one ``DEVICE.curves.json`` of coefficients each. With
``--source aiconfigurator`` the operators are those of an installed aiconfigurator; ``--data`` still
names the folder whose ``vidur`` holds small operations and sends.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from tuner.calibration.aiconfigurator import write_operators
from tuner.calibration.curve_fit import fit_operator, held_out, held_out_logs
from tuner.calibration.links import collective_error, read_series, read_small_series
from tuner.calibration.readers import Columns
from tuner.calibration.systems import LICENCE, SYSTEMS, Measured, System, measured_operators
from tuner.hardware.curves import Curves, HeldOut, OperatorCurve, Provenance
from tuner.hardware.device import load_data_sheet
from tuner.spec.catalog import CURVES_SUFFIX
from tuner.spec.errors import TunerError

FILES = "files"
SOURCES = (FILES, "aiconfigurator")
NUM_TREES = {"gemm": 80, "prefill": 60, "decode": 60}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder of measurements")
    parser.add_argument("--out", type=Path, required=True, help="where curves are written")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--source", choices=SOURCES, default=FILES, help="where operators are from")
    options = parser.parse_args(arguments)
    command = f"python -m tuner.calibration.fit --seed {options.seed} --source {options.source}"
    try:
        with _data_of(options.source, options.data) as data:
            for system in SYSTEMS:
                curves = fit_system(data, system, seed=options.seed, command=command)
                _save(curves, options.out / f"{system.device}{CURVES_SUFFIX}")
    except TunerError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


@contextmanager
def _data_of(source: str, data: Path) -> Iterator[Path]:
    """The folder of measurements to read from."""
    if source == FILES:
        yield data
        return
    with TemporaryDirectory(prefix="gearshift-silicon-") as name:
        folder = Path(name)
        for path in write_operators(folder):
            print(f"read {path}")
        (folder / "vidur").symlink_to((data / "vidur").resolve())
        yield folder


def _save(curves: Curves, path: Path) -> None:
    path.write_text(json.dumps(curves.to_json(), separators=(",", ":")) + "\n")
    print(f"{path}: {path.stat().st_size / 1024:.0f} KiB")
    for name, error in curves.held_out.items():
        print(f"  {name}: held out median {error.median:.1%}, p90 {error.p90:.1%}")


def fit_system(data: Path, system: System, *, seed: int, command: str = "") -> Curves:
    """All curves of one device, with their held-out error."""
    device = load_data_sheet(system.device)
    operators = measured_operators(data, system, device)
    fitted = {m.name: fit_kind(m.name)(m.work, m.seconds, seed=seed) for m in operators}
    series, files = read_series(data, system)
    small, small_files = read_small_series(data, system)
    errors = {m.name: operator_error(m, seed=seed) for m in operators}
    errors["collectives"] = collective_error([s for s in series if s.is_measured_in_node])
    errors["links"] = collective_error([s for s in series if not s.is_measured_in_node])
    return Curves(
        device=device.name,
        gemm={
            name.partition(".")[2]: curve
            for name, curve in fitted.items()
            if name.startswith("gemm")
        },
        prefill=fitted["prefill"],
        decode=fitted["decode"],
        collectives=tuple(one.fit() for one in series),
        small={one.name: one.fit() for one in small},
        held_out=errors,
        sources=_provenance([*(m.columns for m in operators), *files, *small_files]),
        borrowed=system.borrowed,
        licence=LICENCE,
        command=command,
        created=datetime.now(UTC).date().isoformat(),
    )


def fit_kind(name: str) -> partial[OperatorCurve]:
    """The fit of operators called ``name``, as large as their number of rows deserves."""
    kind = name.partition(".")[0]
    return partial(fit_operator, num_trees=NUM_TREES[kind])


def operator_error(measured: Measured, *, seed: int) -> HeldOut:
    """Error on weights or head shapes that the fit never saw."""
    fit = partial(fit_kind(measured.name), seed=seed)
    logs = held_out_logs(measured.work, measured.seconds, measured.groups, fit, seed=seed)
    return held_out(logs, measured.num_groups)


def _provenance(files: list[Columns]) -> tuple[Provenance, ...]:
    unique = {c.source.file: c.source for c in files}
    return tuple(Provenance(file=s.file, rows=s.rows, sha256=s.sha256) for s in unique.values())


if __name__ == "__main__":
    sys.exit(main())
