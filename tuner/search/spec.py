"""What a tuning job is asked, as one JSON-able value."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from engine.spec.config import LinkEmulation
from engine.spec.extensions import ExtensionPoint, load_extensions
from engine.spec.model import DType, ModelConfig
from engine.spec.names import did_you_mean
from engine.spec.quantisation import WeightFormat
from policies.objective import Goal, Objective
from policies.sla import Sla
from tuner.described.node import Node
from tuner.described.parse import (
    AUTO,
    OWN_BACKEND,
    backend_of,
    describe_node,
    has_checkpoint,
    read_rank_dtype,
)
from tuner.hardware import Precision
from tuner.hardware.device import MAX_DEVICES
from tuner.search.budget import TimeBudget
from tuner.servers.command import COMMANDS, DEFAULT_START_TIMEOUT_S, read_system
from tuner.spec.errors import TunerError
from tuner.workload.bounds import MAX_LENGTH_TOKENS, MAX_REQUESTS

LOCAL = "local"
MIB = 2**20
# The largest seed that every library here takes.
MAX_SEED = 2**32 - 1
MAX_SECONDS = 1e8
LEAST_STEP_SCALE, MOST_STEP_SCALE = 0.1, 10.0
_MOST = {
    "num_devices": MAX_DEVICES,
    "trials": 100_000,
    "probe_requests": MAX_REQUESTS,
    "kv_cache_mib": 2**30,
    "block_size": 65_536,
    "max_model_len": MAX_LENGTH_TOKENS,
    "seed": MAX_SEED,
    "timeout_s": MAX_SECONDS,
    "profile_seconds": MAX_SECONDS,
    "capacity_seconds": MAX_SECONDS,
    "start_timeout_s": MAX_SECONDS,
}
DEFAULT_KV_CACHE_MIB = 256


def check_dtype(word: str | None) -> None:
    """Raises TunerError where ``word`` names no number format; None and ``auto`` ask the model."""
    if word not in (None, AUTO):
        Precision.parse(str(word))


def check_quantization(form: WeightFormat | None, hardware: str) -> None:
    """Raises TunerError where layers are to be quantised as they load, and none are loaded."""
    if form is not None and hardware != LOCAL:
        raise TunerError(
            f"quantization {form}: no weights are loaded on described hardware; name their format "
            "there, as in dtype fp8"
        )


def read_weight_format(word: str | None) -> WeightFormat | None:
    """The format that ``word`` names, None where it is None.

    Raises:
        TunerError: another word, with the known ones.
    """
    try:
        return None if word is None else WeightFormat(word)
    except ValueError as error:
        known = ", ".join(WeightFormat)
        raise TunerError(f"quantization {word!r}: known are {known}") from error


@dataclass(frozen=True, kw_only=True)
class TuningSpec:
    """One tuning job.

    ``hardware``: ``local``, or described hardware (``8xh200``), which is simulated as served by
    ``backend`` (None: as :func:`backend_of` says, filled in); there ``model_dir`` may be a model's
    name and ``dtype`` may be fp8. ``quantization`` is what ranks here quantise the layers of a
    plain checkpoint to as they load. ``is_live`` False keeps a local job to simulation. ``dtype``
    None: as the checkpoint says. ``link`` is an emulated link (``latency_us=..,gbps=..``). A live
    trial sends the first ``probe_requests`` of the workload; the winner all of it. ``probe_paced``
    runs the winner on described hardware once more on the real engine with steps paced by the wall
    clock. ``objective``, ``price_per_device_hour`` and ``uses_all_devices`` are those of
    ``policies.objective.Goal``. ``capacity_table``: also find what rate each plan carries.
    ``capacity_seconds``: for so long each plan of that table which can run here is driven over HTTP
    (0: it is only simulated). ``step_scale``: simulated steps take this many times as long as the
    step model says, because live ones were seen to.

    ``budget``: time that the job may use, as in ``device_minutes=30`` or, by the clock,
    ``minutes=5``; None: as much as it takes.

    ``engine``: whose settings are tuned: our own engine, or a server that each trial starts
    (``vllm``, ``sglang``) by ``engine_command``, None: its usual one, and gives ``start_timeout_s``
    to answer; or the name of a target that an installed package brings. Such trials run here
    whatever ``hardware`` guides them.

    Raises:
        TunerError: a number outside its range.
        PolicyInputError: an SLA, objective or price that cannot be read.
    """

    model_dir: str
    num_devices: int
    workload: str
    sla: str
    trials: int = 12
    seed: int = 0
    hardware: str = LOCAL
    dtype: str | None = None
    quantization: WeightFormat | None = None
    backend: str | None = None
    device: str = "cpu"
    link: str | None = None
    is_live: bool = True
    probe_requests: int = 64
    probe_paced: bool = False
    timeout_s: float = 60.0
    kv_cache_mib: int = DEFAULT_KV_CACHE_MIB
    block_size: int = 16
    max_model_len: int | None = None
    profile_seconds: float = 30.0
    objective: str = Objective.DEVICES.value
    price_per_device_hour: float | None = None
    uses_all_devices: bool = False
    capacity_table: bool = False
    capacity_seconds: float = 60.0
    engine: str = OWN_BACKEND
    engine_command: str | None = None
    start_timeout_s: float = DEFAULT_START_TIMEOUT_S
    step_scale: float = 1.0
    budget: str | None = None

    def __post_init__(self) -> None:
        has_profile = self.is_served and not self.is_brought and not self.is_local
        served_as = self.engine if has_profile else None
        found = backend_of(self.backend or served_as, is_described=not self.is_local)
        object.__setattr__(self, "backend", found)
        for name in ("num_devices", "trials", "probe_requests", "kv_cache_mib", "block_size"):
            if getattr(self, name) < 1:
                raise TunerError(f"{name}={getattr(self, name)}: must be at least 1")
        for name, most in _MOST.items():
            value = getattr(self, name)
            if value is not None and not value <= most:
                raise TunerError(f"{name}={value}: must be at most {most:.10g}")
        if self.timeout_s <= 0 or self.profile_seconds <= 0:
            raise TunerError("timeout_s and profile_seconds must be above 0")
        if self.capacity_seconds < 0 or self.seed < 0:
            raise TunerError("capacity_seconds and seed must be at least 0")
        if not LEAST_STEP_SCALE <= self.step_scale <= MOST_STEP_SCALE:
            raise TunerError(
                f"step_scale={self.step_scale}: must be within {LEAST_STEP_SCALE} and "
                f"{MOST_STEP_SCALE}"
            )
        check_dtype(self.dtype)
        if self.link is not None and not self.is_local:
            raise TunerError(
                f"link {self.link!r}: emulated between ranks here only; described hardware brings "
                "its own, as in 8xh200@pcie5"
            )
        if self.probe_paced and not has_checkpoint(self.model_dir):
            raise TunerError(f"probe_paced starts an engine: {self.model_dir!r} is no model folder")
        self._check_engine()
        self._check_quantization()
        Sla.parse(self.sla)
        _ = self.goal, self.time_budget

    def _check_engine(self) -> None:
        if self.start_timeout_s <= 0:
            raise TunerError("start_timeout_s must be above 0")
        if self.is_served:
            if not self.is_brought:
                read_system(self.engine)
            elif self.engine_command is not None:
                raise TunerError(
                    f"engine_command: {self.engine} comes from a package, with its own"
                )
            if not self.is_live:
                raise TunerError(
                    f"engine {self.engine}: its trials are live; to simulate it, name described "
                    "hardware and no engine"
                )
            if not has_checkpoint(self.model_dir):
                raise TunerError(
                    f"model {self.model_dir!r}: {self.engine} is started from a folder"
                )
        elif self.engine_command is not None:
            raise TunerError("engine_command: it starts a server; name its kind with engine, too")

    def _check_quantization(self) -> None:
        if self.quantization is None:
            return
        if self.is_served:
            raise TunerError(
                f"quantization {self.quantization}: of this project's engine; a server is told by "
                "its own command (engine_command)"
            )
        check_quantization(self.quantization, self.hardware)

    @property
    def is_served(self) -> bool:
        """Whether trials run on another engine than ours: a server that a command starts, or what
        a package brings."""
        return self.engine != OWN_BACKEND

    @property
    def is_brought(self) -> bool:
        """Whether trials run on a target that an installed package brings."""
        is_known = self.engine in (OWN_BACKEND, *COMMANDS)
        return not is_known and self.engine in load_extensions(
            ExtensionPoint.TUNING_TARGETS, TunerError
        )

    @property
    def goal(self) -> Goal:
        """What the answer is to be best in."""
        return Goal(
            objective=Objective.parse(self.objective),
            price_per_device_hour=self.price_per_device_hour,
            uses_all_devices=self.uses_all_devices,
        )

    @property
    def time_budget(self) -> TimeBudget | None:
        return None if self.budget is None else TimeBudget.parse(self.budget)

    @property
    def is_local(self) -> bool:
        return self.hardware == LOCAL

    @property
    def parsed_sla(self) -> Sla:
        return Sla.parse(self.sla)

    @property
    def parsed_link(self) -> LinkEmulation | None:
        return LinkEmulation.parse(self.link) if self.link else None

    def rank_dtype(self, model: ModelConfig) -> DType:
        """The number format of ranks here.

        Raises:
            TunerError: one that exists on described hardware only.
        """
        return read_rank_dtype(self.dtype, model)

    def node(self) -> Node:
        """The described hardware with the model on it.

        Raises:
            TunerError: an unknown model, hardware, backend or number format.
        """
        return describe_node(
            model=self.model_dir,
            hardware=self.hardware,
            dtype=self.dtype,
            backend=self.backend,
            block_size=self.block_size,
            max_model_len=self.max_model_len,
        )

    @property
    def model_path(self) -> Path:
        return Path(self.model_dir)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> TuningSpec:
        """Read a spec back. Raises TunerError for an unknown key or a value of the wrong kind."""
        known = cls.__dataclass_fields__
        if unknown := sorted(set(raw) - set(known)):
            raise TunerError(
                f"tuning spec: unknown key {unknown[0]!r}{did_you_mean(unknown[0], known)}; known: "
                f"{', '.join(known)}"
            )
        try:
            return msgspec.convert(raw, cls)
        except msgspec.ValidationError as error:
            raise TunerError(f"tuning spec: {error}") from error
