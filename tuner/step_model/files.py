"""Cost models on disk: saved by id, found by file, by id, or as this machine's newest."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryFile

from engine.spec.model import DType, ModelConfig
from tuner.profiling.profile import SCHEMA as PROFILE_SCHEMA
from tuner.profiling.profile import Profile, read_json
from tuner.spec.errors import TunerError
from tuner.spec.machine import Fingerprint, cost_model_dir, this_machine
from tuner.step_model.model import SCHEMA, StepModel
from tuner.work.counts import model_sizes


def check_cost_model_dir() -> None:
    """Try the folder that cost models are kept in, before one is measured.

    Raises:
        TunerError: nothing can be written there.
    """
    folder = cost_model_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()
    except OSError as error:
        raise TunerError(
            f"cannot keep cost models in {folder}: {error.strerror or error}; name another folder "
            "in GEARSHIFT_DATA_DIR"
        ) from error


def save_cost_model(step_model: StepModel) -> Path:
    """Write the model into the data folder under its id; returns the file."""
    folder = cost_model_dir()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{step_model.id}.json"
    path.write_text(json.dumps(step_model.to_json()))
    return path


def load_cost_model(
    source: str | None,
    model: ModelConfig,
    *,
    dtype: DType | None = None,
    weights: str | None = None,
) -> StepModel:
    """The model that ``source`` names: a file, an id, or (None) the newest of this machine.

    A profile's file is fitted on the spot. Without a source, models of the same sizes and dtype
    come before others. ``weights`` is what the checkpoint asked about has its layers in
    (:func:`tuner.profiling.profile.weights_of`; None: not known). Without a source, only models of
    such layers are taken. With one, a plain checkpoint may be asked about as quantised at its load.

    Raises:
        TunerError: nothing found (with the command to run), a file that is neither, or a model of
            plain layers for a quantised checkpoint.
    """
    if source is None:
        return _newest(this_machine("cpu"), model, dtype, weights)
    path = Path(source)
    if not path.exists() and not source.endswith(".json"):
        path = cost_model_dir() / f"{source}.json"
    if not path.exists():
        raise TunerError(
            f"cost model {source!r}: neither a file nor an id in {cost_model_dir()}; "
            "'gearshift profile --out FILE' makes one"
        )
    found = read_cost_model(path, model)
    found.refuse_checkpoint(weights)
    return found


def read_cost_model(path: Path, model: ModelConfig) -> StepModel:
    """A saved step model, or a profile fitted for ``model``."""
    raw = read_json(path)
    match raw.get("schema"):
        case kind if kind == SCHEMA:
            return StepModel.from_json(raw, where=str(path))
        case kind if kind == PROFILE_SCHEMA:
            from tuner.step_model.fit import fit_step_model

            return fit_step_model(Profile.from_json(raw, where=str(path)), model)
        case unknown:
            raise TunerError(
                f"{path}: schema {unknown!r} is neither {SCHEMA!r} nor {PROFILE_SCHEMA!r}"
            )


def _newest(
    machine: Fingerprint, model: ModelConfig, dtype: DType | None, weights: str | None
) -> StepModel:
    found = []
    others: set[str] = set()
    elsewhere: set[str] = set()
    for path in sorted(cost_model_dir().glob("cm_*.json")):
        step_model = StepModel.from_json(read_json(path), where=str(path))
        if step_model.machine != machine and step_model.machine.is_same_host(machine):
            elsewhere.add(f"{step_model.id} ({step_model.machine.served_on})")
        if step_model.machine == machine and dtype in (None, step_model.dtype):
            if not step_model.is_of(weights):
                others.add(f"{step_model.weights} weights ({step_model.id})")
                continue
            is_same = step_model.model == model_sizes(model)
            found.append((is_same, step_model.created, path.name, step_model))
    if not found and others:
        raise TunerError(
            f"this engine's weights are {weights}, and the cost models of this machine are of "
            f"{', '.join(sorted(others))}: run 'gearshift profile --model DIR --out FILE' first, "
            "or ask about an engine that is served so and name its model with --cost-model"
        )
    if not found:
        raise TunerError(
            f"no cost model of this machine ({machine}) in {cost_model_dir()}; run "
            "'gearshift profile --model DIR --out FILE' first, or name one with --cost-model"
            f"{_listed(elsewhere)}, or describe other hardware with --hardware, as in "
            "--hardware 8xh200"
        )
    return max(found, key=lambda entry: entry[:3])[3]


def _listed(names: set[str]) -> str:
    return f" (of its other devices and threads: {', '.join(sorted(names))})" if names else ""
