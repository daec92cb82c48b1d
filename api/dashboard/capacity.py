"""What load plans carry: the capacity table of a recommendation, and one plan's curve."""

from __future__ import annotations

from typing import Any

from nicegui import ui

from api.dashboard import charts, words
from api.dashboard.layout import Row, Text, allow, button, chart, empty, note, table, told_of
from api.dashboard.visit import Visit
from api.schemas.access import Scope
from api.schemas.capacity import CapacityRequest
from api.services import capacity
from api.web.errors import as_api_error
from policies.capacity_table import CarriedRate
from policies.numbers import counted
from tuner.search.spec import LOCAL

Json = dict[str, Any]
TABLE = (
    ("devices", "Devices"), ("settings", "Settings"), ("rate", "Carries, requests/s"),
    ("range", "90 % interval"), ("known", "Known by"), ("binds", "Binding above it"),
    ("energy", "J/request"),
)  # fmt: skip
# As for the capacity table: more would narrow the interval, and take longer.
DRAWS = 3
SLOW = "Looking for the load that it carries, at several rates. That takes up to a minute ..."


def show_capacity_table(found: Json | None) -> None:
    """The highest rate within the SLA for each number of devices; None: nobody asked for it."""
    if not found:
        empty(
            "No capacity table.",
            "A tuning job with the field 'Capacity table' also finds what rate each plan carries.",
        )
        return
    entries = found["entries"]
    if len(entries) > 1:
        chart(
            charts.interval_points(
                "devices",
                "requests/s within the SLA",
                [(e["num_devices"], e["low_rps"], e["rate_rps"], e["high_rps"]) for e in entries],
            ),
            "requests per second within the SLA against devices, with 90 % intervals",
        )
    table(TABLE, [_row(number, entry) for number, entry in enumerate(entries)])
    Text(
        "p",
        f"Within {found['sla']}, with {found['mean_input_tokens']:.0f} tokens in and "
        f"{found['mean_output_tokens']:.0f} out on average.",
        "soft",
    )


class CapacityCurve:
    """How likely the SLA is met at each rate, simulated when it is asked for."""

    def __init__(self, visit: Visit, spec: Json | None, settings: Json) -> None:
        self._visit = visit
        self._settings = settings
        self._spec = spec
        if spec is None or spec["hardware"] == LOCAL:
            note("A capacity curve is simulated on described hardware only.")
            return
        self._run = button("Simulate the capacity curve", self._find)
        self._place = ui.element("div").props('aria-live="polite"')

    async def _find(self) -> None:
        await self._visit.caller(Scope.READ)
        self._place.clear()
        with self._place:
            Text("p", SLOW, "soft")
        allow(self._run, False)
        try:
            found = await capacity.find_capacity(self._asked(), self._visit.context.aside)
        except Exception as error:
            self._place.clear()
            with self._place:
                note(told_of(as_api_error(error)), "bad")
            return
        finally:
            allow(self._run, True)
        self._place.clear()
        with self._place:
            _show_curve(found)

    def _asked(self) -> CapacityRequest:
        assert self._spec is not None, "without it there is no button"
        spec = self._spec
        return CapacityRequest(
            model=spec["model_dir"],
            hardware=spec["hardware"],
            settings=self._settings,
            workload=spec["workload"],
            sla=spec["sla"],
            backend=spec.get("backend"),
            dtype=spec.get("dtype"),
            draws=DRAWS,
        )


def _row(number: int, entry: Json) -> Row:
    joules, high = entry["joules_per_request"], entry["high_rps"]
    most = "more" if high is None else words.number(high)
    return {
        "key": number,
        "devices": str(entry["num_devices"]),
        "settings": words.settings_of(entry["settings"]),
        "rate": words.number(entry["rate_rps"]),
        "range": f"{words.number(entry['low_rps'])} to {most}",
        "known": CarriedRate.from_json(entry).fidelity.value,
        "binds": entry["binding"] or words.NONE,
        "energy": words.number(joules),
    }


def _show_curve(found: Json) -> None:
    answer = found["capacity"]
    load, low, high = answer["load"], answer["low"], answer["high"]
    if load is None:
        note("No load is carried within the SLA, however low.", "bad")
    else:
        least = "at least " if answer["is_at_least"] else ""
        spread = "" if low is None or high is None else f" ({_load(low)} to {_load(high)})"
        tone = "good" if answer["carries_asked"] else "warn"
        note(f"It carries {least}{_load(load)}{spread}; binding: {answer['binding']}.", tone)
    points = sorted(found["rates"], key=lambda rate: rate["factor"])
    is_closed = bool(points) and points[0]["rate_rps"] is None
    key = "concurrency" if is_closed else "rate_rps"
    marks = {"asked": found["asked"][key]}
    if load is not None:
        marks["carried"] = load[key]
    chart(
        charts.over_load(
            "clients" if is_closed else "requests/s",
            {
                "P(SLA met)": [(p[key], p["sla_probability"] * 100) for p in points],
                "requests within their bounds": [(p[key], p["attainment"] * 100) for p in points],
            },
            level=found["min_probability"] * 100,
            marks=marks,
        ),
        "chance that the SLA is met, and attainment, in percent, against load",
    )
    for warning in found["warnings"]:
        note(str(warning), "warn")


def _load(found: Json) -> str:
    if found["rate_rps"] is None:
        return counted(found["concurrency"], "client")
    return f"{found['rate_rps']:.1f} requests/s"
