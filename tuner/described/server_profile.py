"""A server profile: what was seen of a serving system from outside, as versioned JSON."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from engine.spec.model import DType, ModelConfig
from engine.spec.plan import ParallelPlan, parse_plan
from engine.spec.settings import Caps
from tuner.spec.documents import read_document, read_file
from tuner.spec.errors import TunerError
from tuner.spec.front_end import FrontEnd
from tuner.step_model.server import ServerSteps
from tuner.step_model.server_fit import SeenSteps
from tuner.work.counts import MODEL_SIZES, model_sizes

SCHEMA = "server-profile/v1"
# The metrics of a load that follow its step times closely; waiting times magnify errors.
STEP_METRICS = ("mean_tpot_ms", "throughput_tokens_per_s")


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A load that the fit never saw: one number of it as measured, and as simulated."""

    metric: str
    measured: float
    simulated: float

    @property
    def log_error(self) -> float:
        """log(measured / simulated)."""
        return math.log(self.measured / self.simulated)


@dataclass(frozen=True, kw_only=True)
class ProfiledPlan:
    """One plan of the server, under the caps it was started with.

    ``kv_blocks`` None: the server does not tell. ``errors`` are log(seen / fitted without it) of
    each of ``seen``, ``step_interval`` is the 90 % half width of
    log(true / fitted) of a step by these; ``checked`` is what the
    simulation made of ``check``, a load that was left out altogether. ``took_s`` is without the
    server's start.
    """

    plan: str
    caps: Caps
    kv_blocks: int | None
    block_size: int
    steps: ServerSteps
    front_end: FrontEnd
    seen: tuple[SeenSteps, ...]
    errors: tuple[float, ...]
    step_interval: float
    took_s: float
    check: str = ""
    checked: tuple[Checked, ...] = ()

    @property
    def interval(self) -> float:
        """How far its steps may be off: single ones, or those of the load that checked it."""
        load = [abs(c.log_error) for c in self.checked if c.metric in STEP_METRICS]
        return max([self.step_interval, *load])

    @property
    def parsed(self) -> ParallelPlan:
        return parse_plan(self.plan).plan

    @property
    def most_seqs(self) -> int:
        """Sequences of the fullest step that was seen."""
        return max(shape.num_seqs for each in self.seen for shape in each.shapes)

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longest prompt that was seen alone."""
        prompts = [sum(s.num_prefill_tokens for s in each.shapes) for each in self.seen]
        return max(prompts)


@dataclass(frozen=True, kw_only=True)
class ServerProfile:
    """A server of ``system`` (``release`` None: it does not tell) with one model, seen under each
    of ``plans``. ``model`` holds the sizes (see ``model_sizes``); ``interval`` is the 90 % half
    width of log(true / simulated) of step times in service."""

    system: str
    release: str | None
    model: dict[str, Any]
    dtype: DType
    max_model_len: int | None
    plans: tuple[ProfiledPlan, ...]
    created: str

    def __post_init__(self) -> None:
        if not self.plans:
            raise TunerError("a server profile without a plan")

    @property
    def num_devices(self) -> int:
        """The most that one of its plans uses."""
        return max(known.parsed.world_size for known in self.plans)

    @property
    def interval(self) -> float:
        """The larger of two errors on what no fit saw: of single steps, and of a load."""
        return max(known.interval for known in self.plans)

    def get(self, plan: ParallelPlan) -> ProfiledPlan:
        """What was seen of ``plan``, or of one replica of it: replicas have devices of their own.

        Raises:
            TunerError: neither was profiled, with the plans that were.
        """
        for wanted in (plan, replace(plan, dp=1)):
            for known in self.plans:
                if known.parsed == wanted:
                    return known
        names = ", ".join(known.plan for known in self.plans)
        raise TunerError(
            f"plan {plan} of this server was not profiled, only {names}: what another plan takes "
            "cannot be seen from there; profile it too (gearshift profile --engine ... --plan)"
        )

    def check_model(self, model: ModelConfig) -> None:
        """Raises TunerError where ``model`` is not the one that the server had."""
        other = model_sizes(model)
        wrong = [
            f"{n} {self.model.get(n)}, not {other[n]}"
            for n in MODEL_SIZES
            if self.model.get(n) != other[n]
        ]
        if wrong:
            raise TunerError(
                f"the server was profiled with another model ({'; '.join(wrong)}): what it takes "
                "with this one cannot be told from outside"
            )

    @property
    def not_measured(self) -> tuple[str, ...]:
        """What no load of the profile showed, so that answers about it are extrapolated."""
        found = []
        for known in self.plans:
            found.append(
                f"{known.plan}: steps of more than {known.most_seqs} sequences, prompts of more "
                f"than {known.longest_prompt} tokens"
            )
            if known.kv_blocks is None:
                found.append(
                    f"{known.plan}: room for keys and values, which the server does not "
                    "tell: taken to be enough"
                )
        return (
            *found,
            "more replicas than were profiled: each is taken to be as quick as one alone",
            "other plans: refused",
            "prompts that share beginnings, preemption, sampling other than the server's default, "
            "energy",
        )

    def to_json(self) -> dict[str, Any]:
        """What :meth:`read` reads."""
        return {"schema": SCHEMA, **msgspec.to_builtins(self)}

    @classmethod
    def read(cls, path: Path) -> ServerProfile:
        """The profile in a file.

        Raises:
            TunerError: no such file, another schema, or a missing or impossible value, named.
        """
        return read_document(read_file(path), cls, schema=SCHEMA, where=str(path))
