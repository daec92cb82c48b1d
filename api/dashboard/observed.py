"""An engine that is not ours: how it is seen, and what it should run."""

from __future__ import annotations

import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from nicegui import ui

from api.dashboard import words
from api.dashboard.layout import Text, copied, facts, note
from api.schemas.observed import AdviceView, ObservationView, ShareView
from api.services import advice, observed
from api.web.errors import ApiError
from api.web.settings import ServiceSettings
from policies.numbers import counted
from store import UnitOfWork

# A forecast is made for it, which takes longer than a look.
ADVICE_EVERY_S = 15.0
FACTS = (
    "Address",
    "Sight",
    "Since",
    "Requests/s: arriving, ended",
    "Tokens/s: prompt, generated",
    "Mean tokens: in, out",
    "Prefix cache hits",
    "SLA attainment",
    "Restarted by",
)


@dataclass(frozen=True, kw_only=True)
class Outside:
    """What is seen of a server, and what it should run or why nobody can tell."""

    seen: ObservationView
    advice: AdviceView | None
    why_not: str


class OutsideReader:
    """Reads it; advice now and then only."""

    def __init__(self) -> None:
        self._advice: AdviceView | None = None
        self._why_not = ""
        self._next_s = 0.0

    def read(self, uow: UnitOfWork, engine_id: str, settings: ServiceSettings) -> Outside:
        """Raises NotFoundError where the engine is not observed."""
        seen = observed.view(uow, engine_id, settings)
        if time.monotonic() >= self._next_s:
            self._advice, self._why_not = _advice(uow, engine_id, settings)
            self._next_s = time.monotonic() + ADVICE_EVERY_S
        return Outside(seen=seen, advice=self._advice, why_not=self._why_not)


class OutsideCard:
    """What is seen of it and what it should run, kept up to date."""

    def __init__(self, outside: Outside) -> None:
        self._change = facts([(name, "") for name in FACTS])
        self._said = Text("p", "", "note warn").props('role="status"')
        Text("h3", "Advice")
        self._place = ui.element("div").props('aria-live="polite"')
        self._advice: object = ...
        self.show(outside)

    def show(self, outside: Outside) -> None:
        seen = outside.seen
        self._change(_facts(seen))
        said = _what_is_wrong(seen)
        self._said.set_text(said)
        self._said.set_visibility(bool(said))
        if (now := (outside.advice, outside.why_not)) != self._advice:
            self._advice = now
            self._place.clear()
            with self._place:
                _show_advice(outside)


def _advice(
    uow: UnitOfWork, engine_id: str, settings: ServiceSettings
) -> tuple[AdviceView | None, str]:
    try:
        return advice.tell(uow, engine_id, settings), ""
    except ApiError as error:
        if error.status != HTTPStatus.CONFLICT:
            raise
        return None, error.detail


def _facts(seen: ObservationView) -> list[str]:
    return [
        seen.url,
        words.SIGHTS[seen.sight],
        words.at(seen.since),
        _pair(seen.arrived_rps, seen.finished_rps),
        _pair(seen.prompt_tokens_per_s, seen.generation_tokens_per_s, 0),
        _pair(seen.mean_input_tokens, seen.mean_output_tokens, 0),
        words.share(seen.prefix_hit_rate),
        words.NONE if seen.attainment is None else _range(seen.attainment),
        words.RESTARTERS["hand" if seen.restarts is None else seen.restarts.by],
    ]


def _pair(first: float | None, second: float | None, digits: int = 1) -> str:
    if first is None and second is None:
        return words.NONE
    return f"{words.number(first, digits)}, {words.number(second, digits)}"


def _range(found: ShareView) -> str:
    """A share that was read from buckets."""
    told = words.share(found.value)
    if found.high - found.low < 0.0005:
        return told
    return f"{told} ({found.low * 100:.1f} to {found.high * 100:.1f})"


def _what_is_wrong(seen: ObservationView) -> str:
    """Beside why it is not seen, which the head of its page says."""
    parts = []
    if seen.missing:
        parts.append(f"its page has no series for {', '.join(seen.missing)}")
    if seen.judges_tpot_by_itl:
        parts.append("it does not count TPOT: gaps between tokens stand for it")
    if seen.restarts is not None and seen.restarts.failures:
        retry = words.at(seen.restarts.retry_at)
        parts.append(f"the last restart failed: {seen.restarts.message}; again at {retry}")
    return "; ".join(parts)


def _show_advice(outside: Outside) -> None:
    found = outside.advice
    if found is None:
        note(outside.why_not)
        return
    tone, text = words.ADVICE[found.reason]
    note(text, tone)
    facts(
        [
            ("Load now (requests/s)", words.number(found.observed_rps)),
            ("Forecast peak (requests/s)", words.number(found.peak_rps)),
            ("To be carried (requests/s)", words.number(found.needed_rps)),
            ("The table's entry for its plan", _entry(found.current)),
            ("Should run", _entry(found.entry)),
        ]
    )
    for left in found.left_out:
        note(left, "warn")
    if found.launch is None or found.is_there:
        return
    if found.launch.note:
        Text("p", found.launch.note, "soft")
    copied(found.launch.command, "the command")
    for name, text in (("Deployment", found.launch.kubernetes), ("Compose", found.launch.compose)):
        with ui.expansion(f"As a {name} file").classes("w-full"):
            copied(text, f"the {name} file")


def _entry(found: dict[str, Any] | None) -> str:
    """An entry of the capacity table: settings, devices and what they carry."""
    if found is None:
        return words.NONE
    return (
        f"{words.settings_of(found['settings'])}, {counted(found['num_devices'], 'device')}, "
        f"carries {found['rate_rps']:.1f} requests/s"
    )
