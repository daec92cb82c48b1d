"""Host profiles of serving systems, one small versioned JSON file each beside this module."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from engine.spec.settings import Caps, StepOrder
from tuner.backends.choice import BackendChoice, release_key
from tuner.backends.settings import Value, setting_value, with_settings
from tuner.backends.step_errors import StepErrors
from tuner.hardware import DeviceSpec, KvFormat, Launch
from tuner.hardware.block_scaled import BlockKernel
from tuner.spec.catalog import FileShelf, check_name
from tuner.spec.documents import read_document, read_file
from tuner.spec.errors import TunerError
from tuner.spec.front_end import FrontEnd
from tuner.spec.look_ahead import LookAhead
from tuner.spec.prompt_wait import NO_PROMPT_WAIT, PromptWait

BACKENDS = FileShelf(noun="backend", sub_folder="backends", folder=Path(__file__).parent)
SCHEMA = "backend/v3"
# The assumed error, as a log ratio, of a profile that was never compared with served runs.
UNMEASURED_INTERVAL = 0.25
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class HostShares:
    """How the host's work of a step divides: each part's share of :class:`HostTimes`' work.

    A serving run shows the sum only, so shares come from elsewhere; the profile says from where.
    """

    schedule: float
    input: float
    sample: float
    output: float

    def __post_init__(self) -> None:
        parts = [getattr(self, f.name) for f in fields(self)]
        if min(parts) < 0 or abs(sum(parts) - 1.0) > 1e-6:
            raise TunerError(f"host shares {parts}: must be at least 0 and add up to 1")


@dataclass(frozen=True, kw_only=True)
class HostTimes:
    """Host work of one step: ``step_s``, plus ``seq_s`` per sequence, plus ``request_s`` per
    sequence that computes a part of its prompt and ``prompt_token_s`` per token of it. A step with
    such a sequence adds ``prompt_layer_s`` per layer, in systems that replay kernels from graphs in
    steps of decodes alone and start them one by one in other steps.

    ``is_overlapped``: it runs beside the ranks' work, and ranks wait only for what exceeds that.
    ``exposed_s``, and ``exposed_seq_s`` per sequence, are never hidden behind a step: that work can
    only begin with a step's results. A plan of several stages adds ``pipeline_step_s`` (messages to
    the other stages and back) and ``pipeline_seq_s`` per sequence (what shares the scheduler's
    process there: answers to clients, requests packed for others).
    """

    step_s: float
    seq_s: float
    is_overlapped: bool
    exposed_s: float = 0.0
    exposed_seq_s: float = 0.0
    request_s: float = 0.0
    prompt_token_s: float = 0.0
    prompt_layer_s: float = 0.0
    pipeline_step_s: float = 0.0
    pipeline_seq_s: float = 0.0
    shares: HostShares = field(
        default_factory=lambda: HostShares(schedule=1.0, input=0.0, sample=0.0, output=0.0)
    )

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name.endswith("_s") and value < 0:
                raise TunerError(f"host {f.name}={value}: must be at least 0")

    def work_s(
        self,
        num_seqs: int,
        num_prompts: int,
        prompt_tokens: int,
        *,
        layers: int = 0,
        is_pipeline: bool = False,
    ) -> float:
        """Seconds of the host's work, hidden or not, for ranks that hold so many ``layers``."""
        step_s, seq_s = self.step_s, self.seq_s
        if is_pipeline:
            step_s, seq_s = step_s + self.pipeline_step_s, seq_s + self.pipeline_seq_s
        return (
            step_s
            + seq_s * num_seqs
            + self.request_s * num_prompts
            + self.prompt_token_s * prompt_tokens
            + (self.prompt_layer_s * layers if num_prompts else 0.0)
        )


@dataclass(frozen=True, kw_only=True)
class KernelTimes:
    """Times of this system's kernels over those that the device's curves were measured with
    (vLLM's); below 1 they are quicker. ``fp8_gemm`` is for products in fp8, ``fp8_block_gemm`` for
    block-scaled ones (over those of ``block_kernel``), ``gemm`` for others. ``rounds_apart``: a
    separate pass rounds the activations of products in fp8. There is none if scales are known
    beforehand, since the operation that writes the activations then rounds them.
    """

    gemm: float = 1.0
    fp8_gemm: float = 1.0
    fp8_block_gemm: float = 1.0
    attention: float = 1.0
    communication: float = 1.0
    block_kernel: BlockKernel = BlockKernel.CUTLASS
    rounds_apart: bool = True

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, float) and not value > 0:
                raise TunerError(f"kernel times {f.name}={value}: must be above 0")


@dataclass(frozen=True, kw_only=True)
class HeldOutGroup:
    """Served runs that a fit never saw: its parameters ``values``, and the median |error|."""

    group: str
    rows: int
    ttft: float
    tpot: float
    values: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """Where fitted figures come from: the data, the command, the parameters and how they fare.

    The fit began at ``starts`` and was drawn to them; ``spreads`` say how far each may move.
    """

    file: str
    sha256: str
    rows: int
    licence: str
    command: str
    created: str
    parameters: tuple[str, ...]
    starts: tuple[float, ...]
    spreads: tuple[float, ...]
    held_out: tuple[HeldOutGroup, ...]


@dataclass(frozen=True, kw_only=True)
class Release:
    """What a system does by default from the release ``since`` on: settings by key."""

    since: str
    settings: dict[str, Value]


@dataclass(frozen=True, kw_only=True)
class DeviceCaps:
    """Default caps on devices with at least ``min_memory_gib`` whose names contain none of
    ``not_named``."""

    min_memory_gib: float
    max_num_seqs: int
    max_num_batched_tokens: int
    not_named: tuple[str, ...] = ()

    def are_for(self, device: DeviceSpec) -> bool:
        """Whether ``device`` is one of these."""
        is_large = device.memory_bytes >= self.min_memory_gib * GIB
        return is_large and not any(word in device.name for word in self.not_named)


@dataclass(frozen=True, kw_only=True)
class Backend:
    """One serving system, as far as time depends on it.

    ``shift_launch`` is how kernels start in shift mode, ``has_second_weights`` whether a Shift
    plan holds the shift mode's weights beside the base mode's. ``samples_in_parallel``: a rank
    samples its share of a step's rows, not all of them. ``schedules_ahead``: a step is
    made while the one before runs, so a request joins the step after next; such a system may hold
    prompts back (``prompt_wait``). ``fitted`` is None
    where nothing was fitted; ``source`` then says where the figures come from. ``interval`` is
    the 90 % half width of log(true / simulated) TPOT: for a fitted profile over the runs it never
    saw, else ``UNMEASURED_INTERVAL``. ``step_errors`` says it by phase, load and degree.

    ``step_order`` is what shares a step: prompts and decodes, or prompts alone before decodes.
    ``kv_cache_dtype`` is what it keeps keys and values in.

    ``release`` is the one whose defaults it has; in a file, the newest that is known. ``releases``
    are those at which a default changed, ``device_caps`` the default caps by device, the first that
    fits. ``changed`` are the settings that somebody chose, as ``key=value``.

    Raises:
        TunerError: an interval below 0, or a wait of prompts where steps are not scheduled ahead.
    """

    name: str
    title: str
    version: int
    source: str
    host: HostTimes
    front_end: FrontEnd
    launch: Launch
    shift_launch: Launch
    has_second_weights: bool
    default_caps: Caps
    interval: float
    schedules_ahead: bool = False
    prompt_wait: PromptWait = NO_PROMPT_WAIT
    samples_in_parallel: bool = False
    prefix_cache: bool = False
    step_order: StepOrder = StepOrder.MIXED
    kv_cache_dtype: KvFormat = KvFormat.AUTO
    release: str | None = None
    releases: tuple[Release, ...] = ()
    device_caps: tuple[DeviceCaps, ...] = ()
    changed: tuple[str, ...] = ()
    kernels: KernelTimes = field(default_factory=KernelTimes)
    fitted: Fitted | None = None
    step_errors: StepErrors | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.interval < math.inf:
            raise TunerError(f"interval={self.interval}: must be at least 0, as a log ratio")
        if self.prompt_wait.is_on and not self.schedules_ahead:
            raise TunerError("prompt_wait: prompts wait only where steps are scheduled ahead")

    @property
    def look_ahead(self) -> LookAhead:
        """When it schedules a step, compared with the one before."""
        return LookAhead.AT_START if self.schedules_ahead else LookAhead.NONE

    @property
    def choice(self) -> str:
        """The words that choose it: name, release, and the settings that were changed."""
        head = self.name if self.release is None else f"{self.name}@{self.release}"
        return ",".join([head, *self.changed])

    def chosen(self, choice: BackendChoice, device: DeviceSpec | None = None) -> Backend:
        """The profile on ``device``, with the defaults of the choice's release and its settings.

        Raises:
            TunerError: a release before the first that is known or of a system whose releases are
                all alike here, or a setting that it does not have.
        """
        where = f"backend {str(choice)!r}"
        release = choice.release or self.release
        values = {**self._caps_on(device), **self._defaults_of(release, where)}
        on_device = with_settings(self, values, where=where)
        chosen = with_settings(on_device, dict(choice.settings), where=where)
        changed = tuple(f"{key}={_text(setting_value(chosen, key))}" for key, _ in choice.settings)
        return replace(chosen, release=release, changed=changed)

    def origin_of(self, key: str, device: DeviceSpec | None = None) -> str:
        """Where the value of a setting comes from, for a list of settings."""
        if any(word.partition("=")[0] == key for word in self.changed):
            return "named"
        if self.release and key in self._defaults_of(self.release, self.name):
            return f"release {self.release}"
        if key in self._caps_on(device):
            return device.name if device else self.name
        is_fitted = self.fitted is not None and key in self.fitted.parameters
        return "fitted" if is_fitted else "profile"

    def _caps_on(self, device: DeviceSpec | None) -> dict[str, Value]:
        for caps in self.device_caps:
            if device is not None and caps.are_for(device):
                return {
                    "max_num_seqs": caps.max_num_seqs,
                    "max_num_batched_tokens": caps.max_num_batched_tokens,
                }
        return {}

    def _defaults_of(self, release: str | None, where: str) -> dict[str, Value]:
        if release is None:
            return {}
        known = [each for each in self.releases if release_key(each.since) <= release_key(release)]
        if not known:
            first = self.releases[0].since if self.releases else None
            way_out = f"they are known from {first} on" if first else f"write {self.name} alone"
            raise TunerError(f"{where}: defaults of {release} are not known; {way_out}")
        return {key: value for each in known for key, value in each.settings.items()}

    @property
    def is_measured(self) -> bool:
        """Whether served runs on a GPU say how far off the profile is."""
        return self.fitted is not None

    def to_json(self) -> dict[str, Any]:
        """What :meth:`from_json` reads."""
        return {"schema": SCHEMA, **asdict(self)}

    @classmethod
    def from_json(cls, raw: dict[str, Any], *, where: str) -> Backend:
        """Read one profile.

        Raises:
            TunerError: another schema, or a missing, unknown or impossible value, with its name.
        """
        return read_document(raw, cls, schema=SCHEMA, where=where)


def list_backends() -> list[str]:
    """Names of the backends that have a profile."""
    return BACKENDS.list_names()


def load_profile(name: str) -> Backend:
    """The profile of ``name`` as its file has it: of no release, device or choice.

    Raises:
        TunerError: no such backend, with the nearest and the known ones, or a file that is wrong.
    """
    path = BACKENDS.get_path(name)
    backend = Backend.from_json(read_file(path), where=BACKENDS.where(path))
    check_name(path, backend.name)
    return backend


def load_backend(text: str, device: DeviceSpec | None = None) -> Backend:
    """The backend that ``text`` chooses (:class:`BackendChoice`), on ``device``.

    Raises:
        TunerError: as :meth:`BackendChoice.parse`, :func:`load_profile` and
            :meth:`Backend.chosen`.
    """
    choice = BackendChoice.parse(text)
    return load_profile(choice.name).chosen(choice, device)


def _text(value: Value) -> str:
    """A setting's value as the user writes it."""
    return ("on" if value else "off") if isinstance(value, bool) else str(value)
