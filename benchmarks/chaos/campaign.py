"""One campaign: a world, a list of injections drawn from a seed, and what became of each."""

from __future__ import annotations

import random
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

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
    """What one injection did.

    ``fault_s``: to the end of the fault, from the first request on; ``recovered_s``: from there to
    the moment when all programs answer; ``requests_s`` and ``jobs_s``: from there until requests,
    and then jobs, have ended; ``calm_s``: from the end of the fault to the end of the checks.
    """

    number: int
    kind: str
    fault_s: float = 0.0
    recovered_s: float = 0.0
    requests_s: float = 0.0
    jobs_s: float = 0.0
    calm_s: float = 0.0
    seconds: float = 0.0
    waited_for: str | None = None
    ends: Counter[End] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    num_jobs: int = 0
    violations: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class Outcome:
    """All injections of one or several runs, and what was left at the end of those that came to
    their end."""

    injections: list[Injection] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    leftovers: list[str] = field(default_factory=list)
    num_runs: int = 0
    num_looks_at_end: int = 0

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
    outcome: Outcome,
    *,
    count: int,
    seed: int,
    only: Sequence[str],
    minutes: float,
    say: Callable[[Injection], None],
) -> list[str]:
    """Hurt ``world`` until ``outcome`` has ``count`` injections, or for ``minutes``.

    ``say`` hears of each injection. Returns what was left behind at the end.
    """
    end_s = time.monotonic() + minutes * 60
    wanted = [kind for kind in ALL if not only or any(word in kind.name for word in only)]
    outcome.missing = {k.name: why for k in wanted if (why := k.missing(world)) is not None}
    kinds = [kind for kind in wanted if kind.name not in outcome.missing]
    todo = list(enumerate(draw(kinds, count, seed), start=1))[len(outcome.injections) :]
    outcome.num_runs += 1
    invariants = Invariants(world)
    with world.running():
        for number, kind in todo:
            if time.monotonic() > end_s:
                break
            injection = _hurt(world, kind, number, seed, invariants)
            outcome.injections.append(injection)
            say(injection)
        leftovers = _look(
            partial(_wait_jobs, world), world.ledger.doubled_jobs, invariants.check_store
        )
    leftovers += [*_take(world.faults), *_look(invariants.check_end)]
    outcome.leftovers += leftovers
    outcome.num_looks_at_end += 1
    return leftovers


def _hurt(world: World, kind: Kind, number: int, seed: int, invariants: Invariants) -> Injection:
    """One injection, with all that was found after it."""
    injection = Injection(number=number, kind=kind.name)
    begun_s, num_jobs = time.monotonic(), len(world.ledger.jobs)
    rng = random.Random(f"{seed} injection {number}")
    try:
        injection.violations += _inject(world, kind, rng, injection, invariants)
    except Exception as error:
        injection.violations.append(f"{error!r} {traceback.format_exc(limit=-3)}")
    injection.seconds = time.monotonic() - begun_s
    injection.num_jobs = len(world.ledger.jobs) - num_jobs
    injection.refusals, world.ledger.refusals = world.ledger.refusals, Counter()
    return injection


def _inject(
    world: World, kind: Kind, rng: random.Random, injection: Injection, invariants: Invariants
) -> Iterator[str]:
    begun_s = time.monotonic()
    urls = {name: world.urls[name] for name in ENGINES}
    burst = Burst(world.traffic, urls, rng, each=REQUESTS_EACH)
    wishes = (world, random.Random(rng.random()), kind.with_job)
    clerk = threading.Thread(target=_ask, args=wishes, daemon=True)
    clerk.start()
    time.sleep(rng.uniform(*(JOB_LEAD_S if kind.with_job else LEAD_S)))
    kind.inject(world, rng)
    over_s = time.monotonic()
    injection.fault_s = over_s - begun_s
    injection.waited_for = world.wait_recovered()
    recovered_s = time.monotonic()
    injection.recovered_s = recovered_s - over_s
    tally = burst.wait()
    ended_s = time.monotonic()
    injection.requests_s = ended_s - recovered_s
    for name, ends in tally.ends.items():
        injection.ends += ends
        bad = {end: n for end, n in ends.items() if end not in _allowed(kind, name)}
        if bad:
            yield f"requests at {name} ended as {bad}: {tally.notes[:4]}"
    clerk.join(LEDGER_S)
    if clerk.is_alive():
        yield f"a call to a control plane is under way {LEDGER_S:g} s later"
    yield from _wait_jobs(world)
    injection.jobs_s = time.monotonic() - ended_s
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


def _look(*checks: Callable[[], list[str]]) -> list[str]:
    """What the checks find; one that cannot be made is a find, and keeps no other from its turn."""
    found = []
    for check in checks:
        try:
            found += check()
        except Exception as error:
            found.append(f"{error!r} {traceback.format_exc(limit=-3)}")
    return found


def _take(faults: list[str]) -> list[str]:
    taken = faults[:]
    faults.clear()
    return taken
