"""The SLA: what it says, in every accepted spelling."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from policies.constraint import Constraint, Metric, Percentile
from policies.errors import PolicyInputError

# Other tools' words for our metrics: vLLM's `e2el` and `output_throughput`, GuideLLM's bare names.
_METRIC_WORDS = {
    "ttft": Metric.TTFT_MS,
    "tpot": Metric.TPOT_MS,
    "itl": Metric.ITL_MS,
    "e2e": Metric.E2E_MS,
    "e2el": Metric.E2E_MS,
    "attainment": Metric.ATTAINMENT,
    "throughput_tokens_per_s": Metric.THROUGHPUT,
    "throughput_total_tokens_per_s": Metric.THROUGHPUT_TOTAL,
    "output_throughput": Metric.THROUGHPUT,
    "total_token_throughput": Metric.THROUGHPUT_TOTAL,
}
_PERCENTILE_WORDS = {**{p.value: p for p in Percentile}, "median": Percentile.P50}
_PART = re.compile(r"\s*([A-Za-z0-9_]+)\s*(<=|>=|<|>|==|=|:)\s*(\S+)\s*")


@dataclass(frozen=True, kw_only=True)
class Sla:
    """Constraints that must hold together; at least one, none twice."""

    constraints: tuple[Constraint, ...]

    def __post_init__(self) -> None:
        if not self.constraints:
            raise PolicyInputError("an SLA needs at least one constraint, as in p95_ttft_ms<=500")
        keys = [c.key for c in self.constraints]
        if twice := sorted({key for key in keys if keys.count(key) > 1}):
            raise PolicyInputError(f"SLA: {', '.join(twice)} stands twice; keep one bound each")

    @classmethod
    def parse(cls, text: str) -> Sla:
        """Read ``p95_ttft_ms<=500,attainment>=0.99``, ``{"p99_e2el_ms": "<=500"}`` or ``ttft:500``.

        The first is ours, the second vLLM's JSON form, the third GuideLLM's (milliseconds, every
        request). Parts are separated by commas, semicolons or blanks.

        Raises:
            PolicyInputError: naming the part that does not parse.
        """
        parts = _json_parts(text) if text.lstrip().startswith("{") else _plain_parts(text)
        return cls(constraints=tuple(_constraint(part) for part in parts))

    @property
    def per_request(self) -> tuple[Constraint, ...]:
        """The constraints each request is held to when attainment is judged."""
        return tuple(c for c in self.constraints if c.is_per_request)

    @property
    def per_run(self) -> tuple[Constraint, ...]:
        """The constraints a whole run is held to.

        These are all constraints; if the SLA bounds attainment, those on every request are left
        out.
        """
        if self.attainment_bound is None:
            return self.constraints
        return tuple(
            c for c in self.constraints if not (c.metric.is_latency and c.percentile is None)
        )

    @property
    def attainment_bound(self) -> float | None:
        """The share of requests that must meet theirs, where the SLA names one."""
        return next((c.bound for c in self.constraints if c.metric is Metric.ATTAINMENT), None)

    def __str__(self) -> str:
        return ",".join(map(str, self.constraints))


def _plain_parts(text: str) -> Iterator[str]:
    for part in re.split(r"[,;]", text):
        if not part.strip():
            raise PolicyInputError(
                f"SLA {text!r}: an empty part; write it as in p95_ttft_ms<=500,attainment>=0.99"
            )
        # "ttft:500 tpot:50" has blanks between parts, "ttft_ms <= 500" blanks inside one.
        yield from re.sub(r"\s*(<=|>=|==|<|>|=|:)\s*", r"\1", part).split()


def _json_parts(text: str) -> Iterator[str]:
    try:
        parsed = json.loads(text, object_pairs_hook=list)
    except ValueError as error:
        raise PolicyInputError(f"SLA {text!r}: not readable as JSON ({error})") from error
    for key, value in parsed:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number and not isinstance(value, str):
            raise PolicyInputError(
                f'SLA part {key!r}: {value!r} is no bound; write "<=500" or a number'
            )
        yield f"{key}:{value}" if is_number else f"{key}{value}"


def _constraint(part: str) -> Constraint:
    match = _PART.fullmatch(part)
    if match is None:
        raise PolicyInputError(
            f"SLA part {part!r}: not of the form NAME<=NUMBER, as in p95_ttft_ms<=500"
        )
    word, op, raw = match.groups()
    percentile, metric = _name(part, word)
    try:
        bound = float(raw)
    except ValueError as error:
        raise PolicyInputError(f"SLA part {part!r}: {raw!r} is not a number") from error
    if op not in (":", metric.op):
        raise PolicyInputError(f"SLA part {part!r}: {metric} takes {metric.op}, not {op!r}")
    return Constraint(metric=metric, percentile=percentile, bound=bound)


def _name(part: str, word: str) -> tuple[Percentile | None, Metric]:
    head, _, tail = word.lower().partition("_")
    percentile = _PERCENTILE_WORDS.get(head) if tail else None
    name = tail if percentile else word.lower()
    metric = _METRIC_WORDS.get(name) or _METRIC_WORDS.get(name.removesuffix("_ms"))
    if metric is None or (name.endswith("_ms") and not metric.is_latency):
        known = ", ".join(Metric)
        raise PolicyInputError(
            f"SLA part {part!r}: {word!r} is not known; metrics are {known}, latencies with "
            f"{', '.join(Percentile)} before them"
        )
    return percentile, metric
