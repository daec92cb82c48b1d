"""What an answer of ``plan`` or ``tune`` says of an engine to be started. Pure, no database."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from api.documents.launch import Launch
from api.documents.tuning_spec import tuning_spec
from api.schemas.base import Json
from engine.spec.names import did_you_mean
from engine.spec.quantisation import WeightFormat
from engine.spec.settings import Settings
from tuner.hardware import Precision
from tuner.planner.document import SCHEMA as PLAN_SCHEMA
from tuner.search.report import SCHEMA as TUNE_SCHEMA
from tuner.search.spec import TuningSpec
from tuner.spec.errors import TunerError

DocumentT = TypeVar("DocumentT")
# The answer itself; the others are its alternatives.
RECOMMENDED = "recommended"
NOTHING = (
    "nothing is recommended there: no plan met the SLA; ask for looser bounds or less load, or "
    "name settings yourself (engine serve --plan PLAN)"
)


@dataclass(frozen=True, kw_only=True)
class Place:
    """What the settings were found for. ``hardware`` None: this machine, with its own options."""

    model: str
    dtype: str | None
    hardware: str | None = None
    backend: str | None = None
    device: str = "cpu"
    kv_cache_mib: int | None = None
    block_size: int | None = None
    max_model_len: int | None = None
    quantization: WeightFormat | None = None
    link: str | None = None

    @property
    def is_computable(self) -> bool:
        """Whether ranks of this engine compute in the number format, wherever they are."""
        return self.dtype is None or not Precision.parse(self.dtype).is_quantised


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Settings to serve with; ``place`` is None where only the settings are known.

    ``launch``: commands for serving systems, where the answer has them.
    """

    settings: Settings
    place: Place | None
    launch: tuple[Launch, ...] = ()


class _Chosen(msgspec.Struct):
    settings: Json
    launch: tuple[Launch, ...] = ()


class _Sized(msgspec.Struct):
    block_size: int


class _Best(msgspec.Struct):
    settings: Json
    memory: _Sized
    launch: tuple[Launch, ...] = ()


class _Named(msgspec.Struct):
    name: str


class _Backend(_Named):
    choice: str | None = None


class _Tuned(msgspec.Struct):
    recommendation: _Chosen | None
    alternatives: dict[str, _Chosen]
    spec: Json


class _Planned(msgspec.Struct):
    model: _Named
    dtype: str
    hardware: _Named
    backend: _Backend
    best: dict[str, _Best]
    max_model_len: int | None = None


def read_answer(document: Any, choice: str | None = None) -> Answer:
    """The answer in a document of ``plan --out`` or ``tune --out``.

    ``choice`` names another of its settings than the recommended ones (fastest, balanced, ...).

    Raises:
        TunerError: no such document, nothing recommended there, or no such choice.
        PolicyError: settings that cannot be read.
    """
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema == TUNE_SCHEMA:
        return _read_tuned(_convert(document, _Tuned), choice)
    if schema == PLAN_SCHEMA:
        return _read_planned(_convert(document, _Planned), choice)
    raise TunerError(
        f"no answer to serve: its schema is {schema!r}; known are {PLAN_SCHEMA} (plan --out) and "
        f"{TUNE_SCHEMA} (tune --out)"
    )


def read_recommendation(recommendation: Json | None, job_spec: Json | None) -> Answer:
    """The answer in a kept recommendation, with what its job was asked.

    Raises:
        TunerError: nothing was recommended.
        PolicyError: settings that cannot be read.
    """
    if not recommendation:
        raise TunerError("nothing was recommended: no plan met the SLA; see the job's report")
    chosen = _convert(recommendation, _Chosen)
    place = _place_of(tuning_spec(job_spec)) if job_spec else None
    return Answer(settings=Settings.from_json(chosen.settings), place=place, launch=chosen.launch)


def _read_tuned(found: _Tuned, choice: str | None) -> Answer:
    if found.recommendation is None:
        raise TunerError(NOTHING)
    known = {RECOMMENDED: found.recommendation, **found.alternatives}
    chosen = _choose(known, choice)
    place = _place_of(TuningSpec.from_json(found.spec))
    return Answer(settings=Settings.from_json(chosen.settings), place=place, launch=chosen.launch)


def _read_planned(found: _Planned, choice: str | None) -> Answer:
    if not found.best:
        raise TunerError(NOTHING)
    chosen = _choose(found.best, choice)
    place = Place(
        model=found.model.name,
        dtype=found.dtype,
        hardware=found.hardware.name,
        backend=found.backend.choice or found.backend.name,
        device="cuda",
        block_size=chosen.memory.block_size,
        max_model_len=found.max_model_len,
    )
    return Answer(settings=Settings.from_json(chosen.settings), place=place, launch=chosen.launch)


def _place_of(spec: TuningSpec) -> Place:
    if spec.is_local:
        return Place(
            model=spec.model_dir,
            dtype=spec.dtype,
            device=spec.device,
            kv_cache_mib=spec.kv_cache_mib,
            block_size=spec.block_size,
            max_model_len=spec.max_model_len,
            quantization=spec.quantization,
            link=spec.link,
        )
    return Place(
        model=spec.model_dir,
        dtype=spec.node().precision.value,
        hardware=spec.hardware,
        backend=spec.backend,
        device="cuda",
        block_size=spec.block_size,
        max_model_len=spec.max_model_len,
    )


def _choose(known: dict[str, DocumentT], choice: str | None) -> DocumentT:
    """The one named, else the first, which is the answer."""
    if choice is None:
        return next(iter(known.values()))
    if choice not in known:
        raise TunerError(
            f"choice {choice!r}{did_you_mean(choice, known)}: there are {', '.join(known)}"
        )
    return known[choice]


def _convert(document: Json, kind: type[DocumentT]) -> DocumentT:
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        raise TunerError(f"not as plan or tune writes it: {error}") from error
