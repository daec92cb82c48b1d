"""What there is to name: models, hardware, backends and links, the user's own among them.

One source for ``gearshift list`` and for ``GET /v1/models`` and so on. A description that cannot
be read stands in the list too, with what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from engine.spec.plan import ParallelPlan
from tuner.backends.backend import BACKENDS, load_backend
from tuner.backends.settings import SETTINGS, setting_value
from tuner.hardware import Precision, list_devices, list_links, load_link, parse_hardware
from tuner.hardware.device import DEVICES, load_device
from tuner.hardware.links import GB, LINKS
from tuner.spec.errors import TunerError
from tuner.work.models import MODELS, list_models, load_model

Item = TypeVar("Item", bound="Listed")


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A name, and where it is from: ``built in`` or the user's file. ``error`` says what is wrong
    with that file; then the rest is null."""

    name: str
    origin: str
    title: str | None = None
    source: str | None = None
    error: str | None = None

    @property
    def brief(self) -> dict[str, Any]:
        """What a narrow table has room for, by heading."""
        return {"title": self.title}


@dataclass(frozen=True, kw_only=True)
class ListedModel(Listed):
    """A model by its shape. ``kv_bytes_per_token`` are those of a whole model, in two bytes."""

    family: str | None = None
    num_params: int | None = None
    num_layers: int | None = None
    max_model_len: int | None = None
    kv_bytes_per_token: int | None = None

    @property
    def brief(self) -> dict[str, Any]:
        return {"family": self.family, "size": self.title, "context": self.max_model_len}


@dataclass(frozen=True, kw_only=True)
class ListedHardware(Listed):
    """A device. ``formats`` are those it has a peak for; ``interval`` is the 90 % half width of
    log(true / predicted) of a step in bf16."""

    memory_gb: float | None = None
    memory_gb_per_s: float | None = None
    formats: tuple[str, ...] | None = None
    link: str | None = None
    between_nodes: str | None = None
    devices_per_node: int | None = None
    calibration: str | None = None
    interval: float | None = None

    @property
    def brief(self) -> dict[str, Any]:
        formats, _, _ = (self.calibration or "").removeprefix("calibrated for ").partition(";")
        return {
            "GB": self.memory_gb,
            "GB/s": self.memory_gb_per_s,
            "link": self.link,
            "calibrated": "no" if formats == "uncalibrated" else formats,
        }


@dataclass(frozen=True, kw_only=True)
class ListedBackend(Listed):
    """A serving system as simulated: its default caps, and whether served runs were fitted."""

    version: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    is_measured: bool | None = None
    interval: float | None = None

    @property
    def brief(self) -> dict[str, Any]:
        return {"title": self.title, "fitted": "yes" if self.is_measured else "no"}


@dataclass(frozen=True, kw_only=True)
class ListedSetting:
    """A setting of a serving system, as ``key=value`` changes it. ``origin``: ``named`` by whoever
    asks, a release, a device, ``fitted`` on served runs, or the ``profile``."""

    key: str
    value: bool | int | float | str
    origin: str
    about: str


@dataclass(frozen=True, kw_only=True)
class BackendSettings:
    """A serving system as it is simulated. ``choice`` is what it may be named by, ``interval`` the
    90 % half width of log(true / simulated) TPOT."""

    choice: str
    title: str
    source: str
    is_measured: bool
    interval: float
    settings: tuple[ListedSetting, ...]


@dataclass(frozen=True, kw_only=True)
class ListedLink(Listed):
    """A link. ``gb_per_s`` is the peak per device and direction, ``measured_on`` the device whose
    collectives over it were measured."""

    gb_per_s: float | None = None
    topology: str | None = None
    measured_on: str | None = None

    @property
    def brief(self) -> dict[str, Any]:
        return {"GB/s": self.gb_per_s, "topology": self.topology, "title": self.title}


def catalog_models() -> list[ListedModel]:
    """Every model by name. Raises TunerError where the user's folder is none."""

    def facts(name: str) -> dict[str, Any]:
        model = load_model(name)
        return {
            "title": f"{model.num_params / 1e9:.3g} B parameters",
            "family": model.model_type,
            "num_params": model.num_params,
            "num_layers": model.num_layers,
            "max_model_len": model.max_positions,
            "kv_bytes_per_token": model.kv_bytes_per_token(ParallelPlan(), Precision.BF16.dtype),
        }

    return _list(ListedModel, list_models(), MODELS.origin, facts)


def catalog_hardware() -> list[ListedHardware]:
    """Every device by name. Raises TunerError where the user's folder is none."""

    def facts(name: str) -> dict[str, Any]:
        device = load_device(name)
        return {
            "title": device.title,
            "source": device.source,
            "memory_gb": device.memory_bytes / GB,
            "memory_gb_per_s": device.memory_bytes_per_s / GB,
            "formats": tuple(p.value for p in Precision if p.peak in device.dense_flops_per_s),
            "link": device.link.name,
            "between_nodes": device.between_nodes.name,
            "devices_per_node": device.devices_per_node,
            "calibration": device.calibration,
            "interval": device.interval_for(Precision.BF16),
        }

    return _list(ListedHardware, list_devices(), DEVICES.own.origin, facts)


def catalog_backends() -> list[ListedBackend]:
    """Every backend by name. Raises TunerError where the user's folder is none."""

    def facts(name: str) -> dict[str, Any]:
        backend = load_backend(name)
        return {
            "title": backend.title,
            "source": backend.source,
            "version": backend.version,
            "max_num_seqs": backend.default_caps.max_num_seqs,
            "max_num_batched_tokens": backend.default_caps.max_num_batched_tokens,
            "is_measured": backend.is_measured,
            "interval": backend.interval,
        }

    return _list(ListedBackend, BACKENDS.list_names(), BACKENDS.own.origin, facts)


def backend_settings(text: str, hardware: str | None = None) -> BackendSettings:
    """Every setting of the backend that ``text`` chooses, on ``hardware`` where it is named.

    Raises:
        TunerError: an unknown backend, release, setting or hardware.
    """
    device = None if hardware is None else parse_hardware(hardware).device
    backend = load_backend(text, device)
    return BackendSettings(
        choice=backend.choice,
        title=backend.title,
        source=backend.source,
        is_measured=backend.is_measured,
        interval=backend.interval,
        settings=tuple(
            ListedSetting(
                key=key,
                value=setting_value(backend, key),
                origin=backend.origin_of(key, device),
                about=setting.about,
            )
            for key, setting in SETTINGS.items()
        ),
    )


def catalog_links() -> list[ListedLink]:
    """Every link by name. Raises TunerError where the user's folder is none."""

    def facts(name: str) -> dict[str, Any]:
        link = load_link(name)
        return {
            "title": link.title,
            "source": link.source,
            "gb_per_s": link.bytes_per_s_per_direction / GB,
            "topology": link.topology.value,
            "measured_on": link.measured_on,
        }

    return _list(ListedLink, list_links(), LINKS.own.origin, facts)


def _list(
    kind: type[Item],
    names: list[str],
    origin: Callable[[str], str],
    facts: Callable[[str], dict[str, Any]],
) -> list[Item]:
    found = []
    for name in names:
        try:
            known = facts(name)
        except TunerError as error:
            known = {"error": str(error)}
        found.append(kind(name=name, origin=origin(name), **known))
    return found
