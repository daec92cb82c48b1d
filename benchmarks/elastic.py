"""Question: what do streams notice of replicas that join and leave, and of another plan?

Live on CPU ranks a hundred streams run through a change of plan; their tokens are compared with
those of an undisturbed run, and the longest pause of any of them with that of the same change made
by stopping all ranks. Then the load of a paced node of eight GPUs trebles within a minute and
replicas are added: how long until they serve, and which share of requests is answered in time.

    python -m benchmarks.elastic --out benchmarks/reports/DATE-elastic.md
"""

from __future__ import annotations

import argparse
import datetime
import os
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from benchmarks.quiet import OtherPrograms
from benchmarks.reporting import publish
from engine.engine import Engine
from engine.models.create import create_model
from engine.spec.config import EngineConfig, ExecutorKind
from engine.spec.model import DType
from engine.spec.plan import ParallelPlan, parse_plan
from engine.spec.request import FinishReason, Request, RequestOutput, SamplingParams
from engine.spec.settings import Caps, Settings
from engine.transition.costs import Took, TransitionLimits
from tuner.described.parse import describe_node, paced_config

SEED = 0
END_S = 600.0
MODEL, HARDWARE, REPLICA = "llama-3.1-70b", "8xh200", "tp=2"
RATE, PROMPT, OUTPUT = 1.5, 2000, 150
CALM_S, RUSH_S = 20.0, 90.0
FIRST_TOKEN_S = 2.0


@dataclass
class Stream:
    """One request as its client sees it."""

    at_s: float
    token_ids: list[int] = field(default_factory=list)
    stamps: list[float] = field(default_factory=list)
    reason: FinishReason | None = None
    is_over: threading.Event = field(default_factory=threading.Event)

    def __call__(self, output: RequestOutput) -> None:
        self.token_ids += output.token_ids
        self.stamps += [time.monotonic()] * len(output.token_ids)
        if output.is_finished:
            self.reason = output.finish_reason
            self.is_over.set()

    @property
    def pauses(self) -> list[tuple[float, float]]:
        """Seconds between tokens, each with the time of its end."""
        pairs = zip(self.stamps, self.stamps[1:], strict=False)
        return [(after - before, after) for before, after in pairs]


@dataclass(frozen=True, kw_only=True)
class Change:
    """One change of plan under load, and what it took."""

    name: str
    took: Took
    began_s: float
    seconds: float

    def touches(self, pause_s: float, end_s: float) -> bool:
        """Whether a pause of ``pause_s`` that ended at ``end_s`` fell into it."""
        return end_s > self.began_s and end_s - pause_s < self.began_s + self.seconds


@dataclass(frozen=True, kw_only=True)
class Run:
    """All streams of one run, and its changes."""

    name: str
    streams: list[Stream]
    changes: list[Change]

    @property
    def tokens(self) -> list[list[int]]:
        return [stream.token_ids for stream in self.streams]

    @property
    def num_failed(self) -> int:
        return sum(stream.reason is not FinishReason.LENGTH for stream in self.streams)

    def longest_in(self, change: Change) -> float:
        """The longest pause of any stream, seconds, in one of the changes."""
        return max((p for p, end_s in self._pauses if change.touches(p, end_s)), default=0.0)

    @property
    def longest_apart(self) -> float:
        """The longest pause of any stream, seconds, outside the changes."""
        apart = [
            p for p, end_s in self._pauses if not any(c.touches(p, end_s) for c in self.changes)
        ]
        return max(apart, default=0.0)

    @property
    def _pauses(self) -> list[tuple[float, float]]:
        return [pause for stream in self.streams for pause in stream.pauses]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=100, help="at once, of each live run")
    parser.add_argument("--tokens", type=int, default=200, help="of each stream")
    parser.add_argument("--skip-paced", action="store_true", help="only the live runs")
    parser.add_argument("--out", type=Path, help="write the report here too")
    options = parser.parse_args(arguments)
    lines = _head(options.streams, options.tokens)
    with OtherPrograms() as others:
        lines += _live_lines(options.streams, options.tokens)
        if not options.skip_paced:
            lines += _paced_lines()
    busy = f"{100 * others.share:.0f} % of all cores"
    report = "\n".join([*lines, "", f"Other programs used {busy} meanwhile.", ""])
    publish(report, options.out)
    return 0


# -- live ------------------------------------------------------------------------------------------


def _live_lines(num_streams: int, num_tokens: int) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        model_dir = Path(folder) / "model"
        create_model(model_dir, preset="tiny", seed=1)
        config = EngineConfig(
            model_dir=model_dir,
            dtype=DType.FLOAT64,
            num_kv_blocks=num_streams * (64 + num_tokens) // 16,
            settings=Settings(caps=Caps(max_num_seqs=num_streams)),
            executor=ExecutorKind.PROCESS,
            threads_per_rank=1,
            max_devices=4,
        )
        still = _run("undisturbed, tp=1", config, "tp=1", [], num_streams, num_tokens)
        runs = [
            _run("dp 1 -> 2 -> 1", config, "tp=1", ["dp=2", "tp=1"], num_streams, num_tokens),
            _run("tp=2 -> sp=2", config, "tp=2", ["sp=2"], num_streams, num_tokens),
            _run(
                "tp=2 -> sp=2, two devices",
                replace(config, max_devices=2),
                "tp=2",
                ["sp=2"],
                num_streams,
                num_tokens,
            ),
        ]
    lines = [
        "## Live, ranks on CPU",
        "",
        f"Longest pause of any stream of the undisturbed run: {1e3 * still.longest_apart:.0f} ms.",
        "",
        "| run | failed | tokens as undisturbed | change | way | until it served s | "
        "until the old had left s | carried | longest pause in it ms | outside changes ms |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [_change_line(run, change, still) for run in runs for change in run.changes]
    return [*lines, ""]


def _change_line(run: Run, change: Change, still: Run) -> str:
    took = change.took
    cells = [
        run.name,
        f"{run.num_failed} of {len(run.streams)}",
        "yes" if run.tokens == still.tokens else "NO",
        change.name,
        took.way,
        f"{took.start_s:.2f}",
        f"{change.seconds:.2f}",
        took.carried,
        f"{1e3 * run.longest_in(change):.0f}",
        f"{1e3 * run.longest_apart:.0f}",
    ]
    return f"| {' | '.join(map(str, cells))} |"


def _run(
    name: str,
    config: EngineConfig,
    plan: str,
    changes: Sequence[str],
    num_streams: int,
    num_tokens: int,
) -> Run:
    """Start all streams at once and change the plan while each is under way."""
    settings = replace(config.settings, plan=parse_plan(plan).plan)
    done: list[Change] = []
    with Engine(replace(config, settings=settings)) as engine:
        streams = [_submit(engine, index, num_tokens) for index in range(num_streams)]
        for number, text in enumerate(changes, start=1):
            share = number / (len(changes) + 2)
            _wait_for(partial(_have_tokens, streams, share * num_tokens))
            done.append(_change(engine, text))
        for stream in streams:
            assert stream.is_over.wait(END_S), "a stream never ended"
        engine.check_integrity()
    return Run(name=name, streams=streams, changes=done)


def _change(engine: Engine, text: str) -> Change:
    plan = parse_plan(text).plan
    before, began_s = engine.settings.plan, time.monotonic()
    applied = engine.apply(
        replace(engine.policy, settings=replace(engine.settings, plan=plan)),
        limits=TransitionLimits(drain_s=5.0),
    )
    assert applied.transition is not None
    return Change(
        name=f"{before} -> {plan}",
        took=applied.transition,
        began_s=began_s,
        seconds=applied.seconds,
    )


def _submit(engine: Engine, index: int, num_tokens: int) -> Stream:
    rng = random.Random(f"{SEED}-{index}")
    stream = Stream(at_s=time.monotonic())
    request = Request(
        request_id=str(index),
        prompt_ids=tuple(rng.randrange(3, 500) for _ in range(rng.choice((5, 20, 60)))),
        sampling=SamplingParams(
            max_tokens=num_tokens,
            ignore_eos=True,
            temperature=0.8 if index % 2 else 0.0,
            seed=index,
        ),
        arrival_s=stream.at_s,
    )
    engine.submit(request, stream)
    return stream


def _have_tokens(streams: Sequence[Stream], mean: float) -> bool:
    return statistics.fmean(len(stream.token_ids) for stream in streams) >= mean


def _wait_for(condition: Callable[[], bool]) -> None:
    end_s = time.monotonic() + END_S
    while not condition():
        assert time.monotonic() < end_s, "the streams do not come on"
        time.sleep(0.002)


# -- paced -----------------------------------------------------------------------------------------


def _paced_lines() -> list[str]:
    """The same arrivals twice: one replica throughout, and two more as soon as the load rises."""
    rows = []
    for name, dp in (("one replica throughout", 1), ("dp raised to 3", 3)):
        streams, took, rush_s = _paced_run(dp)
        served_s = None if took is None else took.start_s
        rows.append((name, streams, served_s, rush_s))
    lines = [
        f"## Paced: {MODEL} on {HARDWARE}, replicas of {REPLICA}",
        "",
        f"{RATE:g} arrivals a second for {CALM_S:g} s, then {3 * RATE:g}; {PROMPT} prompt and "
        f"{OUTPUT} output tokens. In time: a first token within {FIRST_TOKEN_S:g} s.",
        "",
        "| run | added capacity served after s | in time before the rise | in its first minute | "
        "after it | failed |",
        "|---|---|---|---|---|---|",
    ]
    for name, streams, served_s, rush_s in rows:
        failed = sum(stream.reason is not FinishReason.LENGTH for stream in streams)
        edges = [(-END_S, 0.0), (0.0, 60.0), (60.0, END_S)]
        shares = [_share_in_time(streams, rush_s, low, high) for low, high in edges]
        served = "-" if served_s is None else f"{served_s:.1f}"
        lines.append(
            f"| {name} | {served} | {' | '.join(f'{share:.2f}' for share in shares)} | {failed} |"
        )
    lines += [
        "",
        "The time until added capacity serves is that of the described start (processes, weights, "
        "warm-up, graphs: an estimate), counted from the order, which comes with the rise.",
    ]
    return lines


def _paced_run(dp: int) -> tuple[list[Stream], Took | None, float]:
    node = describe_node(model=MODEL, hardware=HARDWARE, dtype="bf16", backend="gearshift")
    with tempfile.TemporaryDirectory() as folder:
        model_dir = Path(folder) / "model"
        create_model(model_dir, preset=MODEL, seed=1)
        plan = parse_plan(REPLICA).plan
        settings = Settings(plan=plan, caps=Caps(max_num_seqs=256, max_num_batched_tokens=8192))
        config = EngineConfig(model_dir=model_dir, settings=settings)
        config = replace(paced_config(config, node), max_devices=node.hardware.count)
        with Engine(config, timer_factory=node.timer) as engine:
            return _ask(engine, replace(plan, dp=dp))


def _ask(engine: Engine, plan: ParallelPlan) -> tuple[list[Stream], Took | None, float]:
    rng = random.Random(SEED)
    began_s = time.monotonic()
    rush_s, end_s = began_s + CALM_S, began_s + CALM_S + RUSH_S
    streams: list[Stream] = []
    took: list[Took | None] = [None]

    def raise_dp() -> None:
        if plan != engine.settings.plan:
            wanted = replace(engine.policy, settings=replace(engine.settings, plan=plan))
            took[0] = engine.apply(wanted).transition

    thread = threading.Thread(target=raise_dp)
    next_s = began_s
    while next_s < end_s:
        if next_s >= rush_s and thread.ident is None:
            thread.start()
        time.sleep(max(0.0, next_s - time.monotonic()))
        stream = Stream(at_s=next_s)
        request = Request(
            request_id=str(len(streams)),
            prompt_ids=tuple(rng.randrange(3, 100_000) for _ in range(PROMPT)),
            sampling=SamplingParams(max_tokens=OUTPUT, ignore_eos=True),
            arrival_s=next_s,
        )
        engine.submit(request, stream)
        streams.append(stream)
        next_s += rng.expovariate(RATE if next_s < rush_s else 3 * RATE)
    for stream in streams:
        assert stream.is_over.wait(END_S), "a stream never ended"
    thread.join()
    return streams, took[0], rush_s


def _share_in_time(streams: Sequence[Stream], rush_s: float, low_s: float, high_s: float) -> float:
    """Of those that came from ``low_s`` to ``high_s`` after the rise."""
    found = [s for s in streams if low_s <= s.at_s - rush_s < high_s]
    in_time = [s for s in found if s.stamps and s.stamps[0] - s.at_s <= FIRST_TOKEN_S]
    return len(in_time) / max(1, len(found))


def _head(num_streams: int, num_tokens: int) -> list[str]:
    return [
        "# Replicas and plans that change under load",
        "",
        f"* Date: {datetime.datetime.now(tz=datetime.UTC).date()}; seed {SEED}; "
        f"{os.cpu_count()} cores",
        "* Command: `python -m benchmarks.elastic`",
        f"* {num_streams} streams of {num_tokens} tokens at once, tiny model in float64, one "
        "thread a rank, 5 s for replicas that leave",
        "",
    ]


if __name__ == "__main__":
    raise SystemExit(main())
