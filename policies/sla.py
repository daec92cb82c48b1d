"""The SLA: what it says, in every accepted spelling."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from engine.spec.names import find_nearest
from policies.constraint import Constraint, Metric, Percentile
from policies.errors import PolicyInputError

# Every bound there is, in any spelling, is far shorter; searches of a long text would take long.
MAX_CHARS = 4096
# Other tools' words for our metrics: vLLM's `e2el` and `output_throughput`, GuideLLM's bare names.
_METRIC_WORDS = {
    "ttft": Metric.TTFT_MS,
    "tpot": Metric.TPOT_MS,
    "itl": Metric.ITL_MS,
    "e2e": Metric.E2E_MS,
    "e2el": Metric.E2E_MS,
    "attainment": Metric.ATTAINMENT,
    "throughput": Metric.THROUGHPUT,
    "throughput_tokens_per_s": Metric.THROUGHPUT,
    "throughput_total_tokens_per_s": Metric.THROUGHPUT_TOTAL,
    "output_throughput": Metric.THROUGHPUT,
    "total_token_throughput": Metric.THROUGHPUT_TOTAL,
}
_PERCENTILE_WORDS = {**{p.value: p for p in Percentile}, "median": Percentile.P50}
_PART = re.compile(r"\s*([A-Za-z0-9_.]+)\s*(<=|>=|<|>|==|=|:)\s*(\S+)\s*")
# What a number is multiplied by to be milliseconds, or a share.
_LATENCY_UNITS = {"ms": 1.0, "s": 1000.0}
_SHARE_UNITS = {"%": 0.01}
_UNIT = re.compile(r"(?<=[0-9.])(ms|s|%)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Sla:
    """Constraints that must hold together; at least one, none twice."""

    constraints: tuple[Constraint, ...]

    def __post_init__(self) -> None:
        if not self.constraints:
            raise PolicyInputError("an SLA needs at least one constraint, as in p95_ttft_ms<=500")
        counts = Counter(c.key for c in self.constraints)
        if twice := sorted(key for key, count in counts.items() if count > 1):
            raise PolicyInputError(f"SLA: {', '.join(twice)} stands twice; keep one bound each")

    @classmethod
    def parse(cls, text: str) -> Sla:
        """Read ``p95_ttft_ms<=500,attainment>=0.99``, ``{"p99_e2el_ms": "<=500"}`` or ``ttft:500``.

        The first is ours, the second vLLM's JSON form, the third GuideLLM's (every request).
        Parts are separated by commas, semicolons or blanks. A latency is in milliseconds unless
        the name or the number says otherwise, as in ``p95_ttft<=0.5s``; a unit of the number comes
        first. A share may be in percent, as in ``attainment>=99%``.

        Raises:
            PolicyInputError: naming the part that does not parse.
        """
        if len(text) > MAX_CHARS:
            raise PolicyInputError(
                f"SLA {text[:40]!r}...: {len(text)} characters; at most {MAX_CHARS}"
            )
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
        """The share of requests that must meet their bounds, if the SLA names one."""
        return next((c.bound for c in self.constraints if c.metric is Metric.ATTAINMENT), None)

    def __str__(self) -> str:
        return ",".join(map(str, self.constraints))


def _plain_parts(text: str) -> Iterator[str]:
    for part in re.split(r"[,;]", text):
        if not part.strip():
            raise PolicyInputError(
                f"SLA {text!r}: an empty part; write it as in p95_ttft_ms<=500,attainment>=0.99"
            )
        # "ttft:500 tpot:50" has blanks between parts, "ttft <= 500 ms" blanks inside one.
        closed = re.sub(r"\s*(<=|>=|==|<|>|=|:)\s*", r"\1", part)
        yield from re.sub(r"(?<=[0-9.])\s+(ms|s|%)(?!\S)", r"\1", closed, flags=re.I).split()


def _json_parts(text: str) -> Iterator[str]:
    try:
        parsed = json.loads(text, object_pairs_hook=list)
    except (ValueError, RecursionError) as error:
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
    percentile, metric, name_unit = _name(part, word)
    bound = _bound(part, metric, raw, name_unit)
    if op not in (":", metric.op):
        raise PolicyInputError(f"SLA part {part!r}: {metric} takes {metric.op}, not {op!r}")
    return Constraint(metric=metric, percentile=percentile, bound=bound)


def _bound(part: str, metric: Metric, raw: str, name_unit: str | None) -> float:
    """The number in ``raw`` in the metric's own unit: milliseconds, a share, or tokens/s."""
    units = _LATENCY_UNITS if metric.is_latency else {}
    if metric is Metric.ATTAINMENT:
        units = _SHARE_UNITS
    number, *own = _UNIT.split(raw, maxsplit=1)
    unit = own[0].lower() if own and own[1] == "" else None
    if unit is None:
        number = raw
    elif unit not in units:
        raise PolicyInputError(f"SLA part {part!r}: {metric} has no unit {unit!r}; leave it out")
    try:
        value = float(number)
    except ValueError as error:
        raise PolicyInputError(f"SLA part {part!r}: {raw!r} is not a number") from error
    factor = units.get(unit or name_unit or "", 1.0)
    # Rounded to 15 digits, so that 0.29s are 290 ms and not 289.99999999999994.
    return value if factor == 1.0 else float(f"{value * factor:.15g}")


def _name(part: str, word: str) -> tuple[Percentile | None, Metric, str | None]:
    """What is bound, and the unit that its name ends in: ``p95``, ``ttft_ms`` and ``s`` of
    ``p95_ttft_s``."""
    head, _, tail = word.lower().partition("_")
    percentile = _PERCENTILE_WORDS.get(head) if tail else None
    name = tail if percentile else word.lower()
    if metric := _METRIC_WORDS.get(name):
        return percentile, metric, None
    short, _, unit = name.rpartition("_")
    metric = _METRIC_WORDS.get(short)
    if metric is not None and metric.is_latency and unit in _LATENCY_UNITS:
        return percentile, metric, unit
    known = ", ".join(Metric)
    raise PolicyInputError(
        f"SLA part {part!r}: {word!r} is not known{_nearest_name(word)}; metrics are {known}, "
        f"latencies with {', '.join(Percentile)} before them"
    )


def _nearest_name(word: str) -> str:
    """The nearest name as a hint. Percentile and metric are looked up separately, so that the
    correct one does not count."""
    head, _, tail = word.lower().partition("_")
    has_percentile = bool(re.fullmatch(r"p\d+(\.\d+)?|mean|median", head)) and bool(tail)
    name = (tail if has_percentile else word.lower()).removesuffix("_ms").removesuffix("_s")
    found = find_nearest(name, _METRIC_WORDS)
    if found is None:
        return ""
    metric = str(_METRIC_WORDS[found])
    if has_percentile:
        metric = f"{_nearest_percentile(head)}_{metric}"
    return f" (did you mean {metric!r}?)"


def _nearest_percentile(word: str) -> Percentile:
    if word in _PERCENTILE_WORDS:
        return _PERCENTILE_WORDS[word]
    wanted = float(word[1:4].rstrip("."))
    return min((p for p in Percentile if p.percent), key=lambda p: abs((p.percent or 0) - wanted))
