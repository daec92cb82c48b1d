"""One look at a server's ``/metrics``, and what happened between two."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from policies.errors import PolicyInputError
from policies.histogram import Histogram
from policies.server_window import LATENCIES, ServerWindow
from tuner.launch.command import System
from tuner.servers.series import ERROR, OTHER_RANKS, REASON, SERIES, Names, Series
from tuner.spec.errors import TunerError

MS = 1e3
FAILED = "failed"
# More edges of buckets than any histogram has.
MOST_EDGES = 256


class PageError(TunerError):
    """A page that is no Prometheus text, or has numbers that cannot be."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What a page said: by our words, whatever it had. Latencies are in milliseconds."""

    counters: dict[str, float] = field(default_factory=dict)
    gauges: dict[str, float] = field(default_factory=dict)
    histograms: dict[str, Histogram] = field(default_factory=dict)

    def missing(self, system: System) -> tuple[str, ...]:
        """Words that the page had no series for; a share of hits and the counts that it is made of
        stand for each other."""
        found = {*self.counters, *self.gauges, *self.histograms}
        if {"prefix_queries", "prefix_hits"} <= found:
            found.add("prefix_hit_rate")
        elif "prefix_hit_rate" in found:
            found |= {"prefix_queries", "prefix_hits"}
        return tuple(word for word in SERIES[system].words if word not in found)

    def lacks(self, system: System) -> tuple[str, ...]:
        """Of the missing words, those without which no load is known."""
        return tuple(w for w in self.missing(system) if w in SERIES[system].needed)

    @property
    def arrived_total(self) -> float:
        """Requests since the start: those that ended and those still there."""
        there = self.gauges.get("running", 0.0) + self.gauges.get("waiting", 0.0)
        return self.counters.get("finished", 0.0) + there


def read_page(text: str, system: System) -> Snapshot:
    """The series of ``system`` in a page, summed over engines and models.

    Raises:
        PageError: it cannot be read.
    """
    series = SERIES[system]
    try:
        by_name = _samples(text, series.prefix)
        return Snapshot(
            counters=_counters(by_name, series),
            gauges=_gauges(by_name, series),
            histograms=dict(_histograms(by_name, series)),
        )
    except (ValueError, KeyError, IndexError, PolicyInputError) as error:
        raise PageError(f"/metrics cannot be read: {error}") from error


def between(before: Snapshot, now: Snapshot, *, window_s: float) -> ServerWindow | None:
    """What was counted from ``before`` to ``now``; None where the server began anew in between.

    Raises:
        PolicyInputError: a window that cannot have happened.
    """
    counted = {
        word: value - before.counters.get(word, value) for word, value in now.counters.items()
    }
    if any(value < 0 for value in counted.values()):
        return None
    since: dict[str, Histogram] = {}
    for word, histogram in now.histograms.items():
        earlier = before.histograms.get(word)
        part = None if earlier is None else histogram.since(earlier)
        if earlier is not None and part is None:
            return None
        if part is not None:
            since[word] = part
    finished = counted.get("finished", 0.0)
    ended = _ended(since, counted, finished)
    return ServerWindow(
        window_s=window_s,
        # Gauges and counters of one page are not of one moment.
        arrived=max(0.0, now.arrived_total - before.arrived_total),
        finished=finished,
        failed=counted.get(FAILED, 0.0),
        input_tokens=counted.get("prompt_tokens", 0.0),
        output_tokens=counted.get("generation_tokens", 0.0),
        lengths_of=ended[0],
        ended_input_tokens=ended[1],
        ended_output_tokens=ended[2],
        prefix_queries=counted.get("prefix_queries", 0.0),
        prefix_hits=counted.get("prefix_hits", 0.0),
        **{word: since[word] for word in LATENCIES if word in since},
    )


def _ended(
    since: Mapping[str, Histogram], counted: Mapping[str, float], finished: float
) -> tuple[float, float, float]:
    """Requests that ended, and their tokens: exact where the server has histograms of lengths,
    else as many tokens as were made meanwhile."""
    if "input" in since and "output" in since:
        inputs, outputs = since["input"], since["output"]
        return inputs.count, inputs.total, outputs.total
    if "prompt_tokens" in counted and "generation_tokens" in counted:
        return finished, counted["prompt_tokens"], counted["generation_tokens"]
    return 0.0, 0.0, 0.0


def _samples(text: str, prefix: str) -> dict[str, list[Sample]]:
    """Samples of one system, by name. Other lines are left out before they are taken apart: a
    page may have thousands."""
    marks = (prefix, f"# TYPE {prefix}")
    lines = "".join(f"{line}\n" for line in text.splitlines() if line.startswith(marks))
    by_name: dict[str, list[Sample]] = {}
    for family in text_string_to_metric_families(lines):
        for sample in family.samples:
            if all(sample.labels.get(rank, "0") == "0" for rank in OTHER_RANKS):
                by_name.setdefault(sample.name, []).append(sample)
    return by_name


def _find(by_name: Mapping[str, list[Sample]], names: Names, ending: str = "") -> list[Sample]:
    return next((by_name[name + ending] for name in names if name + ending in by_name), [])


def _total(samples: Iterable[Sample]) -> float:
    total = math.fsum(sample.value for sample in samples)
    if not 0 <= total < math.inf:
        raise ValueError(f"{total} is no count")
    return total


def _counters(by_name: Mapping[str, list[Sample]], series: Series) -> dict[str, float]:
    found = {}
    for word, names in series.counters.items():
        if samples := _find(by_name, names):
            found[word] = _total(samples)
    ended = _find(by_name, series.counters["finished"])
    if any(REASON in sample.labels for sample in ended):
        found[FAILED] = _total(s for s in ended if s.labels.get(REASON) == ERROR)
    return found


def _gauges(by_name: Mapping[str, list[Sample]], series: Series) -> dict[str, float]:
    """Requests are summed over engines; of shares it is the mean."""
    found = {}
    for word, names in series.gauges.items():
        if samples := _find(by_name, names):
            whole = _total(samples)
            found[word] = whole if word in series.needed else whole / len(samples)
    return found


def _histograms(
    by_name: Mapping[str, list[Sample]], series: Series
) -> Iterator[tuple[str, Histogram]]:
    for words, scale in ((series.seconds, MS), (series.lengths, 1.0)):
        for word, names in words.items():
            buckets = _find(by_name, names, "_bucket")
            if buckets:
                total = _total(_find(by_name, names, "_sum")) * scale
                yield word, _histogram(buckets, total, scale)


def _histogram(buckets: Iterable[Sample], total: float, scale: float) -> Histogram:
    """From counts of values up to each edge, over all labels. Edges that only some label sets have
    cannot be summed, so a server's engines must have the same, as they do."""
    up_to: dict[float, float] = {}
    for sample in buckets:
        edge = float(sample.labels["le"])
        up_to[edge] = up_to.get(edge, 0.0) + sample.value
    edges = sorted(edge for edge in up_to if edge < math.inf)
    if len(edges) > MOST_EDGES:
        raise ValueError(f"a histogram of {len(edges)} buckets; at most {MOST_EDGES} are read")
    cumulative = [0.0, *(up_to[edge] for edge in edges)]
    cumulative.append(up_to.get(math.inf, cumulative[-1]))
    counts = [after - before for before, after in pairwise(cumulative)]
    return Histogram(
        # To 12 digits, so that 0.29 s are 290 ms.
        edges=tuple(float(f"{edge * scale:.12g}") for edge in edges),
        counts=tuple(counts),
        total=total,
    )
