"""Question: does every request survive when ranks are killed, and how soon do steps finish again?

A real engine on a small random checkpoint (float64, so that a token never hangs on the order of
additions) keeps a fixed number of greedy requests in flight. Again and again a random rank gets
SIGKILL, some seconds after the engine was ready again, wherever in a step it is then; modes are
pinned at random meanwhile. When the kills are over, all requests run to their end, and their tokens
are compared with those of an engine that nobody disturbed.

    python -m benchmarks.kill_campaign --out benchmarks/reports/DATE-kill-campaign.md
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import psutil

from benchmarks.quiet import OtherPrograms
from benchmarks.reporting import publish
from engine.engine import Engine
from engine.models.create import create_model
from engine.spec.config import EngineConfig
from engine.spec.model import DType, ModelConfig
from engine.spec.modes import AUTO, BASE, SHIFT, ModePin
from engine.spec.plan import ParallelPlan, parse_plan
from engine.spec.request import FinishReason, Request, RequestOutput, SamplingParams
from engine.spec.settings import Caps, Settings

MAX_PROMPT = 48
FIRST_TOKEN_ID = 3
POLL_S = 0.001
FLIP_S = 0.25
GIVE_UP_S = 300.0
# What a rank that was set up has mapped and a spare has not.
SEGMENT_NAME = "memfd:gearshift-collectives"


@dataclass(frozen=True, kw_only=True)
class Campaign:
    """One plan under fire. Pauses are uniform in ``pause_s``, counted from when it was ready."""

    plan: ParallelPlan
    num_requests: int = 200
    num_kills: int = 10
    output_tokens: int = 150
    pause_s: tuple[float, float] = (1.0, 5.0)
    num_spares: int = 1
    seed: int = 0

    def config(self, model_dir: Path, *, num_spares: int) -> EngineConfig:
        """With room for all requests at once; a rank that hangs is found by its step's deadline."""
        tokens = MAX_PROMPT + 2 * self.output_tokens
        return EngineConfig(
            model_dir=model_dir,
            dtype=DType.FLOAT64,
            num_kv_blocks=self.num_requests * (tokens // 16 + 1),
            spare_ranks=num_spares,
            settings=Settings(
                plan=self.plan,
                caps=Caps(max_num_seqs=self.num_requests, max_num_batched_tokens=2048),
            ),
        )

    def request(self, number: int, vocab_size: int) -> Request:
        """Greedy, with a prompt of 8 to 48 tokens; output lengths differ by up to a half."""
        rng = random.Random(f"{self.seed} request {number}")
        half = self.output_tokens // 2
        return Request(
            request_id=str(number),
            prompt_ids=tuple(
                rng.randrange(FIRST_TOKEN_ID, vocab_size) for _ in range(rng.randint(8, MAX_PROMPT))
            ),
            sampling=SamplingParams(
                max_tokens=self.output_tokens + rng.randint(-half, half), ignore_eos=True
            ),
            arrival_s=time.monotonic(),
        )


@dataclass(kw_only=True)
class Outcome:
    """What a campaign found. ``recovery_s``: from each kill to the end of the next step."""

    recovery_s: list[float] = field(default_factory=list)
    restarts: int = 0
    num_requests: int = 0
    num_tokens: int = 0
    num_wrong: int = 0
    num_failed: int = 0
    modes: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def is_clean(self) -> bool:
        """Whether every request completed with the right tokens."""
        return self.num_wrong == 0 and self.num_failed == 0


class Crowd:
    """Keeps requests in flight until told to stop, and gathers what they answer."""

    def __init__(self, engine: Engine, campaign: Campaign) -> None:
        self.tokens: dict[int, list[int]] = {}
        self.failed: dict[int, str] = {}
        self._engine = engine
        self._campaign = campaign
        self._vocab_size = engine.model.vocab_size
        self._wanted = campaign.num_requests
        self._changed = threading.Condition()
        self._left = 0
        self._is_over = False
        self._thread = threading.Thread(target=self._submit_all, name="crowd", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def finish(self) -> None:
        """Let no new ones come and wait for the end of all."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()
        self._thread.join()
        with self._changed:
            if not self._changed.wait_for(lambda: self._left == 0, GIVE_UP_S):
                raise TimeoutError(f"{self._left} requests did not end within {GIVE_UP_S:g} s")

    def _submit_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_over or self._left < self._wanted)
                if self._is_over:
                    return
                self._left += 1
                number = len(self.tokens)
                self.tokens[number] = []
            self._engine.submit(self._campaign.request(number, self._vocab_size), self._take)

    def _take(self, output: RequestOutput) -> None:
        number = int(output.request_id)
        self.tokens[number] += output.token_ids
        if output.is_finished:
            if output.finish_reason is not FinishReason.LENGTH:
                self.failed[number] = f"{output.finish_reason}: {output.error}"
            with self._changed:
                self._left -= 1
                self._changed.notify_all()


def run(campaign: Campaign, model_dir: Path) -> Outcome:
    """Run one campaign, then the same requests undisturbed, and compare."""
    outcome = Outcome()
    started_s = time.monotonic()
    with Engine(campaign.config(model_dir, num_spares=campaign.num_spares)) as engine:
        crowd = Crowd(engine, campaign)
        crowd.start()
        _strike(engine, campaign, outcome)
        crowd.finish()
        engine.check_integrity()
        stats = engine.stats()
    outcome.seconds = time.monotonic() - started_s
    outcome.restarts = stats.restarts
    outcome.modes = tuple(f"{n} {mode}" for mode, n in sorted(stats.steps.items()))
    outcome.num_requests, outcome.num_failed = len(crowd.tokens), len(crowd.failed)
    outcome.num_tokens = sum(map(len, crowd.tokens.values()))
    expected = undisturbed(campaign, model_dir, len(crowd.tokens))
    outcome.num_wrong = sum(crowd.tokens[n] != expected[n] for n in expected)
    return outcome


def undisturbed(campaign: Campaign, model_dir: Path, count: int) -> dict[int, list[int]]:
    """The tokens of the first ``count`` requests when nothing happens."""
    tokens: dict[int, list[int]] = {number: [] for number in range(count)}
    ended = threading.Semaphore(0)

    def take(output: RequestOutput) -> None:
        tokens[int(output.request_id)] += output.token_ids
        if output.is_finished:
            ended.release()

    vocab_size = ModelConfig.from_dir(model_dir).vocab_size
    with Engine(campaign.config(model_dir, num_spares=0)) as engine:
        for number in range(count):
            engine.submit(campaign.request(number, vocab_size), take)
        for _ in range(count):
            if not ended.acquire(timeout=GIVE_UP_S):
                raise TimeoutError("the undisturbed engine does not answer")
    return tokens


def _strike(engine: Engine, campaign: Campaign, outcome: Outcome) -> None:
    """Kill ranks, one after the other, as soon as the engine was ready for long enough."""
    rng = random.Random(f"{campaign.seed} kills")
    _wait_step(engine, time.monotonic())
    for _ in range(campaign.num_kills):
        _flip_modes(engine, campaign, rng, rng.uniform(*campaign.pause_s))
        before = engine.stats().restarts
        victim = rng.choice(list_rank_pids())
        killed_s = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        _wait_restart(engine, before)
        outcome.recovery_s.append(_wait_step(engine, killed_s) - killed_s)


def _flip_modes(engine: Engine, campaign: Campaign, rng: random.Random, pause_s: float) -> None:
    """Pass the time with random pins, obeyed between two steps."""
    until_s = time.monotonic() + pause_s
    while (left_s := until_s - time.monotonic()) > 0:
        if campaign.plan.shift:
            pin = rng.choice([ModePin(BASE), ModePin(SHIFT), AUTO])
            settings = replace(engine.settings, pin=pin)
            engine.apply(replace(engine.policy, settings=settings))
        time.sleep(min(FLIP_S, left_s))


def list_rank_pids() -> list[int]:
    """This process's ranks that are set up; spares are not."""
    return [
        child.pid for child in psutil.Process().children() if SEGMENT_NAME in _maps_of(child.pid)
    ]


def _maps_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return ""


def _polls() -> Iterator[None]:
    deadline_s = time.monotonic() + GIVE_UP_S
    while time.monotonic() < deadline_s:
        yield
        time.sleep(POLL_S)
    raise TimeoutError(f"the engine was not ready again within {GIVE_UP_S:g} s")


def _wait_restart(engine: Engine, before: int) -> None:
    """Return once the engine replaces ranks; what it did until then is taken out of its samples."""
    for _ in _polls():
        if engine.stats().restarts > before:
            engine.drain_samples()
            return


def _wait_step(engine: Engine, since_s: float) -> float:
    """When the first step that begins after ``since_s`` ends."""
    for _ in _polls():
        ends = [s.start_s + s.step_s for s in engine.drain_samples() if s.start_s >= since_s]
        if ends:
            return min(ends)
        if not engine.stats().is_healthy:
            raise RuntimeError("the engine gave up")
    raise AssertionError("polls end with an error")


# -- the report --------------------------------------------------------------------------------


def main() -> int:
    """Run a campaign per plan and report; 1 if a request was lost or came out wrong."""
    options = _options()
    campaigns = [
        Campaign(
            plan=parse_plan(plan).plan,
            num_requests=options.requests,
            num_kills=options.kills,
            output_tokens=options.output_tokens,
            num_spares=options.spares,
            seed=options.seed,
        )
        for plan in options.plans
    ]
    with tempfile.TemporaryDirectory() as folder, OtherPrograms() as others:
        model_dir = Path(folder) / "model"
        create_model(model_dir, preset="tiny", seed=1)
        outcomes = [run(campaign, model_dir) for campaign in campaigns]
    text = report(campaigns, outcomes, others.share)
    publish(text, options.out)
    return 0 if all(outcome.is_clean for outcome in outcomes) else 1


def report(campaigns: Sequence[Campaign], outcomes: Sequence[Outcome], others_share: float) -> str:
    first = campaigns[0]
    plans = " ".join(f"'{campaign.plan}'" for campaign in campaigns)
    lines = [
        "# Ranks killed while requests are in flight",
        "",
        __doc__.split("\n\n")[1].replace("\n", " ") if __doc__ else "",
        "",
        f"* {time.strftime('%Y-%m-%d')}, {platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, torch {version('torch')}; other programs used "
        f"{others_share:.0%} of the machine.",
        f"* {first.num_requests} requests in flight; prompts of 8 to {MAX_PROMPT} tokens, outputs "
        f"of {first.output_tokens // 2} to {first.output_tokens + first.output_tokens // 2}; a new "
        "request takes an ended one's place until the last kill is survived.",
        f"* {first.num_kills} kills of random ranks, each {first.pause_s[0]:g} to "
        f"{first.pause_s[1]:g} s after the engine was ready again; {first.num_spares} spare "
        f"process(es); seed {first.seed}; preset tiny, float64.",
        f"* Repeat: `python -m benchmarks.kill_campaign --requests {first.num_requests} --kills "
        f"{first.num_kills} --output-tokens {first.output_tokens} --spares {first.num_spares} "
        f"--seed {first.seed} --plans {plans}`",
        "",
        "Recovery is the time from the signal to the end of the first step of the new ranks.",
        "",
        "| plan | recovery p50 s | max s | restarts | requests | tokens | failed | wrong | steps |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [_row(c, o) for c, o in zip(campaigns, outcomes, strict=True)]
    return "\n".join(lines) + "\n"


def _row(campaign: Campaign, outcome: Outcome) -> str:
    recovery_s = outcome.recovery_s
    return (
        f"| {campaign.plan} | {statistics.median(recovery_s):.3f} | {max(recovery_s):.3f} "
        f"| {outcome.restarts} | {outcome.num_requests} | {outcome.num_tokens} "
        f"| {outcome.num_failed} | {outcome.num_wrong} | {', '.join(outcome.modes)} |"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=200, help="in flight (%(default)s)")
    parser.add_argument("--kills", type=int, default=10, help="per plan (%(default)s)")
    parser.add_argument("--output-tokens", type=int, default=150, help="on average (%(default)s)")
    parser.add_argument("--spares", type=int, default=1, help="warm processes (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of requests and kills (%(default)s)")
    parser.add_argument("--plans", nargs="+", default=["tp=2", "sp=2,shift"])
    parser.add_argument("--out", type=Path, help="also write the report here")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
