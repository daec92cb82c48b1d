"""One campaign: a world, a list of injections drawn from a seed, and what became of each."""

from __future__ import annotations

import random
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from benchmarks.chaos.invariants import Invariants
from benchmarks.chaos.kinds import ALL
from benchmarks.chaos.kinds.kind import Kind
from benchmarks.chaos.traffic import Burst, End
from benchmarks.chaos.world import ENGINES, SERVICES, World

REQUESTS_EACH = 4
JOB_SHARE = 0.35
PATCH_SHARE = 0.5
LEAST_CAP = 24
# From the first request to the fault; a job takes about a second.
LEAD_S = (0.02, 0.3)
JOB_LEAD_S = (0.1, 1.5)
JOBS_S = 90.0
LEDGER_S = 120.0


@dataclass(kw_only=True)
class Injection:
    """What one injection did."""

    number: int
    kind: str
    recovered_s: float = 0.0
    calm_s: float = 0.0
    seconds: float = 0.0
    waited_for: str | None = None
    ends: Counter[End] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class Outcome:
    """All injections, and what was left at the end."""

    injections: list[Injection] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    leftovers: list[str] = field(default_factory=list)
    refusals: Counter[str] = field(default_factory=Counter)
    num_jobs: int = 0
    seconds: float = 0.0

    @property
    def violations(self) -> list[str]:
        found = [
            f"injection {i.number} ({i.kind}): {v}" for i in self.injections for v in i.violations
        ]
        return [*found, *(f"at the end: {line}" for line in self.leftovers)]


def draw(kinds: Sequence[Kind], count: int, seed: int) -> list[Kind]:
    """``count`` injections: every kind by its weight, each at least once, in random order."""
    rng = random.Random(f"{seed} order")
    deck = [kind for kind in kinds for _ in range(kind.weight - 1)]
    rng.shuffle(deck)
    chosen = [*kinds, *deck]
    while len(chosen) < count:
        chosen += deck or kinds
    chosen = chosen[:count]
    rng.shuffle(chosen)
    return chosen


def run(
    world: World,
    count: int,
    seed: int,
    only: Sequence[str],
    minutes: float,
    say: Callable[[Injection], None],
) -> Outcome:
    """Hurt ``world`` ``count`` times, or for ``minutes``; ``say`` hears of each injection."""
    outcome = Outcome()
    started_s = time.monotonic()
    wanted = [kind for kind in ALL if not only or any(word in kind.name for word in only)]
    outcome.missing = {k.name: why for k in wanted if (why := k.missing(world)) is not None}
    kinds = [kind for kind in wanted if kind.name not in outcome.missing]
    invariants = Invariants(world)
    with world.running():
        for number, kind in enumerate(draw(kinds, count, seed), start=1):
            if time.monotonic() - started_s > minutes * 60:
                break
            injection = Injection(number=number, kind=kind.name)
            outcome.injections.append(injection)
            begun_s = time.monotonic()
            rng = random.Random(f"{seed} injection {number}")
            try:
                injection.violations += _inject(world, kind, rng, injection, invariants)
            except Exception as error:
                injection.violations.append(f"{error!r} {traceback.format_exc(limit=-3)}")
            injection.seconds = time.monotonic() - begun_s
            say(injection)
        outcome.leftovers += [
            *_wait_jobs(world),
            *world.ledger.doubled_jobs(),
            *invariants.check_store(),
        ]
    outcome.leftovers += [*_take(world.faults), *invariants.check_end()]
    outcome.num_jobs = len(world.ledger.jobs)
    outcome.refusals = world.ledger.refusals
    outcome.seconds = time.monotonic() - started_s
    return outcome


def _inject(
    world: World, kind: Kind, rng: random.Random, injection: Injection, invariants: Invariants
) -> Iterator[str]:
    urls = {name: world.urls[name] for name in ENGINES}
    burst = Burst(world.traffic, urls, rng, each=REQUESTS_EACH)
    wishes = (world, random.Random(rng.random()), kind.with_job)
    clerk = threading.Thread(target=_ask, args=wishes, daemon=True)
    clerk.start()
    time.sleep(rng.uniform(*(JOB_LEAD_S if kind.with_job else LEAD_S)))
    kind.inject(world, rng)
    over_s = time.monotonic()
    injection.waited_for = world.wait_recovered()
    injection.recovered_s = time.monotonic() - over_s
    tally = burst.wait()
    for name, ends in tally.ends.items():
        injection.ends += ends
        bad = {end: n for end, n in ends.items() if end not in _allowed(kind, name)}
        if bad:
            yield f"requests at {name} ended as {bad}: {tally.notes[:4]}"
    clerk.join(LEDGER_S)
    if clerk.is_alive():
        yield f"a call to a control plane is under way {LEDGER_S:g} s later"
    yield from _wait_jobs(world)
    yield from world.ledger.check_changes()
    yield from invariants.check()
    injection.calm_s = time.monotonic() - over_s
    yield from _take(world.faults)
    yield from _take(world.ledger.faults)


def _allowed(kind: Kind, engine: str) -> tuple[End, ...]:
    return (End.DONE, End.TOLD, End.CUT) if engine in kind.cuts else (End.DONE,)


def _ask(world: World, rng: random.Random, with_job: bool) -> None:
    """What people ask of the control planes meanwhile."""
    try:
        if with_job:
            world.ledger.submit(rng)
        if rng.random() < PATCH_SHARE:
            asked = {"caps": {"max_num_seqs": rng.randrange(LEAST_CAP, 64)}}
            engine_id = world.engine_id(rng.choice(ENGINES))
            world.ledger.patch(world.urls[rng.choice(SERVICES)], engine_id, asked)
        if not with_job and rng.random() < JOB_SHARE:
            world.ledger.submit(rng)
    except Exception as error:
        world.faults.append(f"asking failed: {error!r}")


def _wait_jobs(world: World) -> list[str]:
    end_s = time.monotonic() + JOBS_S
    while open_jobs := world.ledger.open_jobs():
        if time.monotonic() > end_s:
            return [f"jobs have not ended {JOBS_S:g} s later (lost): {open_jobs}"]
        time.sleep(0.1)
    return []


def _take(faults: list[str]) -> list[str]:
    taken = faults[:]
    faults.clear()
    return taken
