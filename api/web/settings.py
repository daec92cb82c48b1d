"""Settings of the service, from GEARSHIFT_* environment variables."""

from __future__ import annotations

import os
import socket
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from api.documents.places import Place, Places
from api.web.addresses import Network, read_networks
from engine.spec.limits import RequestLimits
from store.errors import StoreError
from tuner.spec.errors import TunerError

PREFIX = "GEARSHIFT_"
LIMITS = RequestLimits()
MIB = 2**20


def _default_data_dir() -> Path:
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "gearshift"


class ServiceSettings(BaseSettings):
    """Every setting has a default that works on one machine."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore")

    data_dir: Path = Field(
        default_factory=_default_data_dir,
        description="Folder of the default database and of cost models.",
    )
    database_url: str | None = Field(
        default=None,
        description="sqlite:///FILE or postgresql+psycopg://...; default: a file in DATA_DIR.",
    )
    jobs_database_url: str | None = Field(
        default=None,
        description=(
            "Where the workflow engine keeps its own tables; default: a file beside the SQLite "
            "database, or the schema 'dbos' of the PostgreSQL database."
        ),
    )
    admin_key: SecretStr | None = Field(
        default=None,
        description="First key, scope admin; without it one is made and printed once.",
    )
    model_root: str | None = Field(
        default=None,
        description="Folders, separated by ':', that model folders named in tuning jobs lie in; "
        "default: 'models' in DATA_DIR.",
    )
    trace_root: str | None = Field(
        default=None,
        description="Folders, separated by ':', that traces named in tuning jobs lie in; default: "
        "'traces' in DATA_DIR.",
    )
    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=8700, ge=0, le=65535, description="Port; 0 = any free one.")
    node: str = Field(
        default_factory=socket.gethostname,
        description="Name of this machine in the device inventory.",
    )
    devices: int | None = Field(
        default=None,
        ge=0,
        description="Devices of this machine; default: its GPUs, else its cores.",
    )
    device_wait_s: float = Field(
        default=600.0,
        ge=0,
        description="How long a job waits for free devices before it fails.",
    )
    lease_s: float = Field(
        default=300.0,
        gt=0,
        description="A silent engine keeps its devices about this long; a trial renews its own.",
    )
    run_worker: bool = Field(default=True, description="Start a worker process for tuning jobs.")
    worker_id: str = Field(
        default="local",
        description=(
            "Identity of the worker; it resumes what it began. While another worker has it, "
            "'-2', '-3', ... is added."
        ),
    )
    job_concurrency: int = Field(default=1, ge=1, description="Jobs one worker runs at a time.")
    control_interval_s: float = Field(
        default=5.0, gt=0, description="Seconds between two looks of the controller."
    )
    control_window_s: float = Field(
        default=15.0, gt=0, description="Seconds of traffic the controller judges by."
    )
    capacity_interval_s: float = Field(
        default=180.0,
        gt=0,
        description="Seconds between two looks of the slow loop, which adds and removes replicas.",
    )
    capacity_dwell_s: float = Field(
        default=60.0,
        ge=0,
        description="Least seconds for which fewer devices must have done before they are given "
        "back; never less than a start and a drain take.",
    )
    forecaster: str | None = Field(
        default=None,
        description="Who forecasts every engine's load, as in seasonal_naive; default: for each "
        "whoever forecast it best so far.",
    )
    cool_down_down_s: float = Field(
        default=300.0, ge=0, description="Least seconds before settings follow a falling load."
    )
    observe_interval_s: float = Field(
        default=5.0, gt=0, description="Seconds between two looks at servers that are observed."
    )
    observe_timeout_s: float = Field(
        default=3.0, gt=0, description="A page of metrics that has not come by then is missed."
    )
    observe_concurrency: int = Field(
        default=64, ge=1, le=1024, description="Observed servers looked at at a time."
    )
    observe_max_bytes: int = Field(
        default=4 * MIB, ge=1024, description="A page of metrics that is longer is not read."
    )
    observe_networks: str = Field(
        default="",
        description="Networks, as in 10.0.0.0/8,127.0.0.1/32, that observed servers must lie in; "
        "default: any but link-local ones.",
    )
    servers_file: Path | None = Field(
        default=None,
        description="YAML file of tokens, hooks and commands of observed servers, by their name.",
    )
    hook_root: Path | None = Field(
        default=None,
        description="Folder of the programs that the file of servers may name as hooks.",
    )
    retention_s: float = Field(
        default=3600.0, gt=0, description="Engine heartbeats older than this are dropped."
    )
    sse_heartbeat_s: float = Field(
        default=15.0, gt=0, description="Comment line on a quiet event stream after this long."
    )
    poll_interval_s: float = Field(
        default=0.2,
        gt=0,
        description="Seconds between two looks for changes that other processes made.",
    )
    disk_reserve_mib: int = Field(
        default=64,
        ge=0,
        description="Free disk below which the service says that it is not ready.",
    )
    max_body_bytes: int = Field(
        default=LIMITS.max_body_bytes, ge=1, description="A request's body that is longer gets 413."
    )
    max_upload_bytes: int = Field(
        default=64 * MIB, ge=1, description="A trace that is longer gets 413."
    )
    header_timeout_s: float = Field(
        default=LIMITS.header_timeout_s,
        gt=0,
        allow_inf_nan=False,
        description="A connection is cut that has not sent a request's headers by then.",
    )
    keep_alive_s: float = Field(
        default=LIMITS.keep_alive_s,
        gt=0,
        allow_inf_nan=False,
        description="A connection is closed that has sent nothing for so long after an answer.",
    )
    body_timeout_s: float = Field(
        default=LIMITS.body_timeout_s,
        gt=0,
        allow_inf_nan=False,
        description="A request whose body has not come by then gets 408.",
    )
    max_connections: int = Field(
        default=LIMITS.max_connections,
        ge=1,
        description="Beyond these the one idle longest is cut, else a new one gets 503.",
    )
    rate_per_s: float = Field(
        default=LIMITS.rate_per_s,
        ge=0,
        allow_inf_nan=False,
        description=(
            "Requests per second and key, ten seconds' worth of them at once; beyond them 429. "
            "0: any number."
        ),
    )
    dashboard: bool = Field(
        default=True, description="Pages for people at /; they need the extra 'dashboard'."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Lines less serious than this are not logged."
    )

    @field_validator("observe_networks")
    @classmethod
    def _are_networks(cls, text: str) -> str:
        read_networks(text)
        return text

    @field_validator("forecaster")
    @classmethod
    def _is_known(cls, name: str | None) -> str | None:
        if name is not None:
            from tuner.spec.forecasters import get_forecaster  # loads all of numpy

            try:
                get_forecaster(name)
            except TunerError as error:
                raise ValueError(str(error)) from error
        return name

    @property
    def networks(self) -> tuple[Network, ...]:
        """Where observed servers must lie; empty: anywhere."""
        return read_networks(self.observe_networks)

    @property
    def limits(self) -> RequestLimits:
        """What the service takes of one client."""
        return RequestLimits(
            max_body_bytes=self.max_body_bytes,
            header_timeout_s=self.header_timeout_s,
            keep_alive_s=self.keep_alive_s,
            body_timeout_s=self.body_timeout_s,
            max_connections=self.max_connections,
            rate_per_s=self.rate_per_s,
        )

    @property
    def has_dashboard(self) -> bool:
        """Whether pages are wanted and their libraries installed."""
        return self.dashboard and find_spec("nicegui") is not None

    @property
    def fresh_s(self) -> float:
        """How long what the controller saw of an engine is shown as what is."""
        return self.control_window_s + 2 * self.control_interval_s

    @property
    def effective_database_url(self) -> str:
        """The database to use; makes the data folder when the default is taken.

        Raises:
            StoreError: the folder cannot be made, or no URL can name it.
        """
        if self.database_url is not None:
            return self.database_url
        if "?" in str(self.data_dir):
            raise StoreError(
                f"data folder {self.data_dir} has a '?', where the path in a database's URL ends; "
                f"name another one with {PREFIX}DATA_DIR"
            )
        try:
            self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"data folder {self.data_dir} cannot be made ({error.strerror}); name another one "
                f"with {PREFIX}DATA_DIR"
            ) from error
        return f"sqlite:///{self.data_dir / 'gearshift.db'}"

    @property
    def effective_jobs_database_url(self) -> str:
        """Where DBOS keeps its tables: its own SQLite file, or the same PostgreSQL database."""
        if self.jobs_database_url is not None:
            return self.jobs_database_url
        url = self.effective_database_url
        return f"{url.removesuffix('.db')}.jobs.db" if url.startswith("sqlite") else url

    @property
    def places(self) -> Places:
        """Where models and traces named in tuning jobs lie."""
        return Places(
            models=self._place("model", self.model_root),
            traces=self._place("trace", self.trace_root),
        )

    @property
    def uploads_dir(self) -> Path:
        """Where a worker keeps uploaded traces that its jobs read."""
        return self.data_dir / "uploads"

    def _place(self, noun: str, roots: str | None) -> Place:
        named = [part for part in (roots or "").split(os.pathsep) if part]
        folders = named or [str(self.data_dir / f"{noun}s")]
        return Place(
            noun=noun,
            variable=f"{PREFIX}{noun.upper()}_ROOT",
            folders=tuple(Path(folder).expanduser().absolute() for folder in folders),
        )

    @property
    def is_sqlite(self) -> bool:
        return self.effective_database_url.startswith("sqlite")

    def environment(self) -> dict[str, str]:
        """These settings as environment variables, for a child process."""
        dumped = self.model_dump(mode="json", exclude={"admin_key"}, exclude_none=True)
        return {f"{PREFIX}{name.upper()}": str(value) for name, value in dumped.items()}


def describe_settings() -> str:
    """One line per environment variable with its default, for ``serve --help``."""
    lines = []
    for name, field in ServiceSettings.model_fields.items():
        text = (field.description or "").rstrip(".")
        if field.default_factory is None and field.default is not None:
            text += f" (default {field.default})"
        lines.append(f"{PREFIX}{name.upper()}: {text}.")
    return "\n\n".join(lines)


def num_devices(settings: ServiceSettings) -> int:
    """Devices of this machine: as set, else its GPUs, else its cores."""
    if settings.devices is not None:
        return settings.devices
    from tuner.spec.inventory import list_devices

    return num_visible(len(list_devices())) or os.cpu_count() or 1


def num_visible(count: int) -> int:
    """How many of ``count`` CUDA devices this process may see."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    return count if shown is None else min(count, len([name for name in shown.split(",") if name]))
