"""Pictures of a tuning job: the Pareto front, which knobs mattered, predicted against measured."""

from __future__ import annotations

from nicegui import ui

from api.dashboard import charts, words
from api.dashboard.job_known import Known, estimate
from api.dashboard.layout import card, chart, redraw
from policies.constraint import Constraint

NOT_YET = "comparing the trials ..."
NO_KNOB = "no knob made a difference among these trials"
# Of the variance of latency; less is no difference.
LEAST_SHARE = 0.001


class Pictures:
    """The charts of a job's page, each there once there is something to draw."""

    def __init__(self, known: Known) -> None:
        with ui.element("div").classes("grid2"):
            with card("Pareto front: devices against latency") as self._front_card:
                self._front = chart(_front(known), "devices against latency of each trial")
            with card("Which knobs mattered") as self._knobs_card:
                self._knobs = chart(_knobs(known), "share of variance by knob")
            with card("Predicted against measured") as self._truth_card:
                self._truth = chart(_truth(known), "predicted against measured")
        self._choose(known)

    def show(self, known: Known) -> None:
        """Draw what is known now."""
        for drawn, options in (
            (self._front, _front(known)),
            (self._knobs, _knobs(known)),
            (self._truth, _truth(known)),
        ):
            redraw(drawn, options)
        self._choose(known)

    def _choose(self, known: Known) -> None:
        """Places are kept for what comes a moment later, so that nothing jumps."""
        self._front_card.set_visibility(bool(known.trials and known.bounds))
        may_have_knobs = known.importance is None or bool(known.importance.knobs)
        self._knobs_card.set_visibility(bool(known.trials) and may_have_knobs)
        self._truth_card.set_visibility(bool(known.pairs))


def named(bound: Constraint) -> str:
    """p95 TTFT, ms."""
    return f"{bound.percentile} {bound.metric.removesuffix('_ms').upper()}, ms"


def _front(known: Known) -> charts.Json:
    if known.pareto is None or not known.bounds:
        return charts.dots("devices", "ms", {}, bounds={}, none=NOT_YET)
    bound = known.bounds[0]
    front = {point.trial for point in known.pareto.front}
    groups: dict[str, list[tuple[float, float, str]]] = {"on the front": [], "beaten": []}
    if any(known.is_chosen(record) for record in known.trials):
        groups["recommended"] = []
    for record in known.trials:
        value = estimate(record, "metrics", bound.key).get("value")
        if value is not None:
            name = "on the front" if record["number"] in front else "beaten"
            text = words.settings_of(record["settings"])
            group = groups["recommended" if known.is_chosen(record) else name]
            group.append((words.devices_of(record["settings"]), value, text))
    bounds = {f"SLA {bound}": bound.bound}
    return charts.dots("devices", named(bound), groups, bounds=bounds, none=NOT_YET)


def _knobs(known: Known) -> charts.Json:
    found = known.importance.knobs if known.importance else []
    told = {knob.knob: 100 * knob.share for knob in found if knob.share >= LEAST_SHARE}
    none = NO_KNOB if found else NOT_YET
    return charts.bars("share of the variance of latency, %", told, none=none)


def _truth(known: Known) -> charts.Json:
    name = named(known.bounds[0]) if known.bounds else "ms"
    pairs = [(p, measured, words.settings_of(s)) for p, measured, s in known.pairs]
    return charts.predicted_against_measured(name, pairs)
