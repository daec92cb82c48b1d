"""Loads that show what a step of a running server takes: prompts alone, and streams side by side.

A prompt alone is computed in one step after the other, each of as many tokens as the server's cap
allows, so the time to its first token is theirs. Between two tokens of a stream lies one step of
all streams that run, so the gaps of ``n`` streams alone are decode steps of ``n`` sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean, median

from engine.spec.measurement import Measurement, Outcome, RequestTiming
from engine.spec.settings import Caps
from engine.spec.steps import StepShape
from policies.numbers import counted
from tuner.spec.errors import LoadError
from tuner.spec.front_end import FrontEnd
from tuner.step_model.server_fit import SeenSteps
from tuner.workload.parse import parse_workload
from tuner.workload.workload import Workload

# Lengths of prompts that are asked alone, as far as the server's context has room for them.
PROMPTS = (1, 8, 32, 128, 256, 512, 1024, 2048, 4096)
STREAMS = (1, 2, 4, 8, 16, 32, 64)
# Streams side by side: the tokens of an answer, of its prompt, and of a longer prompt where the
# context has room.
STREAM_TOKENS = 24
SHORT, LONG = 16, 1024
LONG_STREAMS = (1, 4, 8)
# The least that is probed, however little time there is.
NEEDED_PROMPT, NEEDED_STREAMS = 256, 8
PREFILL_S = "vllm:request_prefill_time_seconds"

# Sends a workload with prompts of its own; returns the run and what /metrics counted meanwhile.
Ask = Callable[[Workload], tuple[Measurement, "Counted"]]


@dataclass(frozen=True, kw_only=True)
class Counted:
    """Mean seconds that prompts took by the server's own count; None: it does not tell."""

    prefill_s: float | None


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One kind of steps to look at: ``streams`` prompts of ``prompt`` tokens at once, each
    answered by ``output`` tokens."""

    streams: int
    prompt: int
    output: int

    @property
    def name(self) -> str:
        if self.is_prompt:
            return f"prompt of {self.prompt}"
        return f"{counted(self.streams, 'stream')} after prompts of {self.prompt}"

    @property
    def is_prompt(self) -> bool:
        """Whether it shows prefill steps; else decode steps."""
        return self.output == 1

    @property
    def is_needed(self) -> bool:
        """Whether nothing can be told of the server without it."""
        return self.prompt <= NEEDED_PROMPT and self.streams <= NEEDED_STREAMS

    @property
    def num_tokens(self) -> int:
        """Tokens of prompts and answers."""
        return self.streams * (self.prompt + self.output)

    @property
    def workload(self) -> Workload:
        return parse_workload(
            f"closed:concurrency={self.streams},input={self.prompt},output={self.output},"
            f"requests={self.streams}",
            seed=0,
        )


@dataclass(frozen=True, kw_only=True)
class Look:
    """What one run of a probe showed: steps, their seconds, and of a prompt what its way to the
    server and the answer's way back took, where the server tells its own part."""

    shapes: tuple[StepShape, ...]
    seconds: float
    front_s: float | None = None


def list_probes(caps: Caps, max_model_len: int) -> list[Probe]:
    """What a server with these caps and this context can be asked."""
    room = max_model_len - STREAM_TOKENS
    prompts = [Probe(streams=1, prompt=n, output=1) for n in PROMPTS if n <= room]
    short = [
        Probe(streams=n, prompt=min(SHORT, room), output=STREAM_TOKENS)
        for n in STREAMS
        if n <= caps.max_num_seqs
    ]
    long = [
        Probe(streams=n, prompt=LONG, output=STREAM_TOKENS)
        for n in LONG_STREAMS
        if n <= caps.max_num_seqs and room >= LONG
    ]
    return [*prompts, *short, *long]


def look(probe: Probe, ask: Ask, caps: Caps) -> Look | None:
    """One run of it; None where its streams never all ran at once.

    Raises:
        LoadError: the server did not answer.
    """
    run, counted = ask(probe.workload)
    failed = [t for t in run.timings if t.outcome is not Outcome.COMPLETED]
    if failed:
        raise LoadError(
            f"{probe.name}: {len(failed)} of {len(run.timings)} requests failed; a server that "
            "others load, or that refuses such requests, cannot be profiled"
        )
    return _prompt_look(probe, run, counted, caps) if probe.is_prompt else _stream_look(run)


def _prompt_look(probe: Probe, run: Measurement, counted: Counted, caps: Caps) -> Look:
    (timing,) = run.timings
    whole_s = timing.token_s[0] - timing.sent_s
    shapes = tuple(chunk_shapes(probe.prompt, caps.max_num_batched_tokens))
    if counted.prefill_s is None or not 0 < counted.prefill_s < whole_s:
        return Look(shapes=shapes, seconds=whole_s)
    return Look(shapes=shapes, seconds=counted.prefill_s, front_s=whole_s - counted.prefill_s)


def chunk_shapes(prompt: int, chunk: int) -> Iterator[StepShape]:
    """Steps of a prompt alone, of at most ``chunk`` tokens each."""
    for start in range(0, prompt, chunk):
        tokens = min(chunk, prompt - start)
        yield StepShape(
            num_seqs=1,
            num_prefill_tokens=tokens,
            prefill_context_tokens=start + tokens,
            prefill_attention_pairs=tokens * start + tokens * (tokens + 1) // 2,
            num_sampled=int(start + tokens == prompt),
        )


def _stream_look(run: Measurement) -> Look | None:
    """Gaps in which every stream had its second token already, and none its last: the first step
    of as many streams may be one that the server prepares at its first use."""
    timings = run.timings
    begun_s = max(timing.token_s[:2][-1] for timing in timings)
    ended_s = min(timing.token_s[-1] for timing in timings)
    gaps = [list(_gaps(timing, begun_s, ended_s)) for timing in timings]
    if not all(gaps):
        return None
    streams = len(timings)
    context = mean(position for each in gaps for position, _ in each)
    shape = StepShape(
        num_seqs=streams,
        num_decode_tokens=streams,
        decode_context_tokens=round(streams * context),
        num_sampled=streams,
    )
    # The mean, because pauses of the machine also meet served runs.
    return Look(shapes=(shape,), seconds=mean(gap_s for each in gaps for _, gap_s in each))


def _gaps(timing: RequestTiming, begun_s: float, ended_s: float) -> Iterator[tuple[int, float]]:
    """Tokens in the cache and seconds, of each gap between the two times."""
    for number, (before_s, after_s) in enumerate(pairwise(timing.token_s), start=1):
        if begun_s <= before_s and after_s <= ended_s:
            yield timing.prompt_tokens + number, after_s - before_s


def warm(looks: Sequence[Look]) -> Sequence[Look]:
    """The looks without the first, if there are more: what a server does for the first time it may
    have to compile (a prompt of 128 tokens took vLLM on CPU twice as long then), and in service
    that is soon over."""
    return looks[1:] or looks


def seen_steps(probe: Probe, looks: Sequence[Look]) -> SeenSteps:
    """What several runs of one probe showed, without the first where there are more."""
    seconds = [each.seconds for each in warm(looks)]
    middle = median(seconds)
    return SeenSteps(
        name=probe.name,
        shapes=looks[0].shapes,
        seconds=middle,
        repeats=len(seconds),
        spread=(max(seconds) - min(seconds)) / middle,
    )


def front_end(prompts: Sequence[tuple[Probe, Sequence[Look]]], token_s: float) -> FrontEnd:
    """What a request takes outside of its steps, counted on its way in: fixed, and per prompt
    token. ``token_s`` is a decode step of one sequence: where the server does not tell its own
    part, a prompt of one token is taken to be such a step.
    """
    told = [
        (probe.prompt, median(fronts))
        for probe, looks in prompts
        if (fronts := [each.front_s for each in warm(looks) if each.front_s is not None])
    ]
    if len(told) > 1:
        per_token_s, fixed_s = _line(told)
        return FrontEnd(request_s=fixed_s, prompt_token_s=per_token_s)
    _, first = min(prompts, key=lambda each: each[0].prompt)
    return FrontEnd(request_s=max(0.0, median(each.seconds for each in warm(first)) - token_s))


def _line(points: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """Slope and start of a straight line, neither below 0, through most of the points
    (Theil-Sen)."""
    from scipy.stats import theilslopes

    x, y = zip(*points, strict=True)
    slope = max(0.0, float(theilslopes(y, x).slope))
    return slope, max(0.0, median(b - slope * a for a, b in points))
