"""A running server profiled from outside: looked at, fitted, and checked by a load of its own."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import httpx

from engine.spec.measurement import Measurement
from engine.spec.model import DType, ModelConfig
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Settings
from policies.report import flat_metrics
from tuner.described.profiled import node_of
from tuner.described.server_profile import Checked, ProfiledPlan, ServerProfile
from tuner.load.driver import run_load
from tuner.load.http_target import HttpTarget
from tuner.load.served_model import get_served_model
from tuner.load.urls import full_url, is_secure, key_headers
from tuner.servers.command import DEFAULT_START_TIMEOUT_S, ServerCommand
from tuner.servers.metrics import Samples, read_samples
from tuner.servers.probes import (
    PREFILL_S,
    Counted,
    Look,
    Probe,
    front_end,
    list_probes,
    look,
    seen_steps,
)
from tuner.servers.process import ServerError, ServerProcess, free_port
from tuner.servers.target import HOST
from tuner.spec.errors import LoadError, TunerError
from tuner.step_model.server_fit import fit_server_steps
from tuner.work.counts import model_sizes
from tuner.workload.parse import parse_workload
from tuner.workload.prompts import unseen_seed
from tuner.workload.workload import Workload

# The share of a plan's seconds that is kept for the load that checks the profile.
CHECK_SHARE = 0.25
CHECK_CLIENTS = 8
CHECK_REQUESTS = (16, 400)
CHECKED = ("mean_ttft_ms", "mean_tpot_ms", "throughput_tokens_per_s")
# Rounds over the least probes, without which no law can be fitted.
NEEDED_ROUNDS = 2
TIMEOUT_S = 600.0
DEFAULT_BLOCK = 16
VERSION_TIMEOUT_S = 5.0

OnEvent = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class ServerProfileSpec:
    """How to profile a running server at ``url`` for about ``seconds``: it serves ``model`` under
    ``plan`` with ``caps``, which only whoever started it knows. ``api_key``: what it asks of its
    callers, if anything."""

    url: str
    system: str
    model: ModelConfig
    dtype: DType
    plan: ParallelPlan
    caps: Caps
    seconds: float
    seed: int = 0
    api_key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        plan = self.plan
        if plan != ParallelPlan(tp=plan.tp):
            raise TunerError(
                f"plan {plan}: seen from outside, stages, replicas and sequence ranks are one; "
                "profile a server of tp alone (replicas behind a router are as many of those)"
            )


def profile_server(
    asked: ServerProfileSpec, *, on_event: OnEvent = lambda _: None
) -> ServerProfile:
    """Look at the server, fit its step times, and check them by a load that the fit never saw.

    Raises:
        LoadError: it does not answer, or requests fail.
        TunerError: it is too small to be looked at.
    """
    began_s = time.monotonic()
    server = _Server(asked)
    looks = _looks(server, asked.seconds * (1 - CHECK_SHARE), on_event)
    known = replace(
        fitted_plan(asked.plan, asked.caps, looks),
        kv_blocks=server.kv_blocks,
        block_size=server.block_size,
    )
    profile = ServerProfile(
        system=asked.system,
        release=server.release,
        model=model_sizes(asked.model),
        dtype=asked.dtype,
        max_model_len=server.max_model_len,
        plans=(known,),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    checked = _check(profile, server, known, asked.seconds * CHECK_SHARE, on_event)
    return replace(profile, plans=(replace(checked, took_s=time.monotonic() - began_s),))


def fitted_plan(
    plan: ParallelPlan, caps: Caps, looks: Mapping[Probe, Sequence[Look]]
) -> ProfiledPlan:
    """What looks at a server under ``plan`` say of its steps; they say nothing of its KV room.

    Raises:
        TunerError: too few looks.
    """
    seen = [seen_steps(probe, each) for probe, each in looks.items()]
    fit = fit_server_steps(seen)
    token_s = seen[[probe.is_prompt for probe in looks].index(False)].seconds
    return ProfiledPlan(
        plan=str(plan),
        caps=caps,
        kv_blocks=None,
        block_size=DEFAULT_BLOCK,
        steps=fit.steps,
        front_end=front_end([(p, each) for p, each in looks.items() if p.is_prompt], token_s),
        seen=tuple(seen),
        errors=fit.errors,
        step_interval=fit.interval,
        took_s=0.0,
    )


def joined(profiles: Sequence[ServerProfile]) -> ServerProfile:
    """One profile of several of the same system and model, each of other plans."""
    first = profiles[0]
    return replace(first, plans=tuple(known for each in profiles for known in each.plans))


@dataclass
class _Server:
    """The server, and what it tells of itself."""

    asked: ServerProfileSpec
    url: str = field(init=False)
    name: str = field(init=False)
    max_model_len: int = field(init=False)
    kv_blocks: int | None = field(init=False, default=None)
    block_size: int = field(init=False, default=DEFAULT_BLOCK)
    _prompts: int = field(init=False, default_factory=unseen_seed)
    _num_runs: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        model = self.asked.model
        self.url = full_url(self.asked.url).removesuffix("/v1")
        served = get_served_model(self.url, api_key=self.asked.api_key)
        self.name = served.name
        self.max_model_len = model.context_tokens(served.max_model_len)
        _, cache = self._samples()
        blocks, size = cache.get("num_gpu_blocks", ""), cache.get("block_size", "")
        if blocks.isdecimal() and size.isdecimal():
            self.kv_blocks, self.block_size = int(blocks), int(size)

    @property
    def release(self) -> str | None:
        """The release as vLLM tells it; None if it does not."""
        url = f"{self.url}/version"
        try:
            answer = httpx.get(
                url,
                headers=key_headers(self.asked.api_key),
                timeout=VERSION_TIMEOUT_S,
                verify=is_secure(url),
            )
            return str(answer.raise_for_status().json()["version"])
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, LookupError, TypeError):
            return None

    def _samples(self) -> tuple[Samples, dict[str, str]]:
        return read_samples(self.url, api_key=self.asked.api_key)

    def ask(self, workload: Workload) -> tuple[Measurement, Counted]:
        """Run a workload. Each run has prompts of its own, so that none finds another's, nor those
        of a profile that was made before."""
        self._num_runs += 1
        before, _ = self._samples()
        with HttpTarget(self.url, self.name, api_key=self.asked.api_key) as target:
            run = run_load(
                workload,
                target,
                seed=self._prompts + self._num_runs,
                timeout_s=TIMEOUT_S,
                vocab_size=self.asked.model.vocab_size,
            )
        after, _ = self._samples()
        count = after.get(f"{PREFILL_S}_count", 0.0) - before.get(f"{PREFILL_S}_count", 0.0)
        if count <= 0:
            return run, Counted(prefill_s=None)
        total_s = after[f"{PREFILL_S}_sum"] - before.get(f"{PREFILL_S}_sum", 0.0)
        return run, Counted(prefill_s=total_s / count)


def _looks(server: _Server, seconds: float, on_event: OnEvent) -> dict[Probe, list[Look]]:
    """Rounds over the probes until the seconds are over, so that a machine whose speed drifts
    drifts for all of them. What no law can be fitted without is looked at in any case: streams
    once, prompts twice (see :func:`~tuner.servers.probes.warm`)."""
    caps, until_s = server.asked.caps, time.monotonic() + seconds
    probes = list_probes(caps, server.max_model_len)
    server.ask(probes[0].workload)  # the first request of a server pays for what it loads late
    looks: dict[Probe, list[Look]] = {probe: [] for probe in probes}
    took_s: dict[Probe, float] = {}
    round_, has_looked = 0, True
    while round_ < NEEDED_ROUNDS or has_looked:
        has_looked = False
        for probe in probes:
            is_late = time.monotonic() + _expected_s(probe, took_s) > until_s
            is_due = probe.is_needed and round_ < (NEEDED_ROUNDS if probe.is_prompt else 1)
            if is_late and not is_due:
                continue
            on_event(probe.name)
            began_s = time.monotonic()
            found = look(probe, server.ask, caps)
            took_s[probe] = time.monotonic() - began_s
            has_looked = True
            if found is not None:
                looks[probe].append(found)
        round_ += 1
    return {probe: each for probe, each in looks.items() if each}


def _expected_s(probe: Probe, took_s: dict[Probe, float]) -> float:
    """Seconds that the probe took before, else those of the nearest of its kind, by its tokens."""
    if probe in took_s:
        return took_s[probe]
    alike = [other for other in took_s if other.is_prompt == probe.is_prompt]
    if not alike:
        return 0.0
    nearest = min(alike, key=lambda other: abs(math.log(probe.num_tokens / other.num_tokens)))
    return took_s[nearest] * max(1.0, probe.num_tokens / nearest.num_tokens)


def _check(
    profile: ServerProfile, server: _Server, known: ProfiledPlan, seconds: float, on_event: OnEvent
) -> ProfiledPlan:
    """The plan with a load measured and simulated: several clients, lengths that vary, so that
    prompts and decodes share steps, which no probe shows."""
    asked = server.asked
    node = node_of(profile, asked.model, name="profile")
    settings = Settings(plan=asked.plan, caps=asked.caps)

    def simulated(spec: str) -> Measurement:
        workload = parse_workload(spec, seed=asked.seed)
        return node.simulate(settings, workload, seed=asked.seed).measurement

    least, most = CHECK_REQUESTS
    trial = simulated(check_spec(known, least))
    lasts_s = max(timing.token_s[-1] for timing in trial.timings)
    spec = check_spec(known, min(most, max(least, round(least * seconds / lasts_s))))
    on_event(f"check: {spec}")
    run, _ = server.ask(parse_workload(spec, seed=asked.seed))
    seen, guessed = flat_metrics(run, None), flat_metrics(simulated(spec), None)
    checked = tuple(
        Checked(metric=key, measured=seen[key], simulated=guessed[key])
        for key in CHECKED
        if seen.get(key, 0.0) > 0 and guessed.get(key, 0.0) > 0
    )
    return replace(known, check=spec, checked=checked)


def check_spec(known: ProfiledPlan, requests: int) -> str:
    """The load that checks a plan: within the range of what was seen, but no part of it."""
    clients = min(CHECK_CLIENTS, known.most_seqs)
    longest = max(2, known.longest_prompt // 4)
    return (
        f"closed:concurrency={clients},input=uniform:{max(1, longest // 8)}..{longest},"
        f"output=uniform:8..32,requests={requests}"
    )


def profile_started(
    asked: ServerProfileSpec,
    command: ServerCommand,
    *,
    start_timeout_s: float = DEFAULT_START_TIMEOUT_S,
    on_event: OnEvent = lambda _: None,
) -> ServerProfile:
    """The same of a server that ``command`` starts for it, and that is ended in any case.

    Raises:
        ServerError: it cannot run the plan, or did not start or last, with the end of its log.
    """
    settings = Settings(plan=asked.plan, caps=asked.caps)
    if (reason := command.why_not(settings)) is not None:
        raise ServerError(reason)
    port = free_port()
    url = f"http://{HOST}:{port}"
    words = command.words(settings, port=port)
    with ServerProcess(words, name=f"{command.system}'s server") as process:
        start_s = process.wait_healthy(
            f"{url}/health", timeout_s=start_timeout_s, should_stop=lambda: False
        )
        on_event(f"it answers after {start_s:.0f} s")
        try:
            return profile_server(replace(asked, url=url), on_event=on_event)
        except LoadError as error:
            process.check()
            raise ServerError(str(error)) from error
