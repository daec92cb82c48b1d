"""The ``compare --json`` document, and its sentences."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from statistics import fmean
from typing import Any

from engine.spec.modes import TABLE
from policies.paired import Change, paired_change
from policies.report import finite
from tuner.comparison.compare import ComparisonQuestion, Kind, Runs
from tuner.comparison.metrics import mean_score, metric_keys, metric_name

SCHEMA = "comparison/v1"
ORACLE = (
    "the oracle runs every step in its fastest mode, one step at a time: a bound on any rule for "
    "modes, not a setting, and not the best order of steps, which could look ahead"
)


def comparison_json(
    question: ComparisonQuestion,
    runs: Sequence[Runs],
    *,
    seed: int,
    title: str,
    origin: dict[str, Any],
    warnings: Sequence[str] = (),
    is_interrupted: bool = False,
) -> dict[str, Any]:
    """The comparison as a JSON value without wall times: equal inputs give equal bytes.

    Changes are shares of the best static plan's numbers, over the same draws.
    """
    keys = metric_keys(question.sla)
    able = [each for each in runs if each.draws]
    static = min(
        (each for each in able if each.case.kind is Kind.STATIC),
        key=lambda each: (-each.num_met, mean_score(each.draws, question.sla)),
        default=None,
    )
    document = {
        "schema": SCHEMA,
        "title": title,
        "gearshift": version("gearshift"),
        "fidelity": "simulated",
        "sla": None if question.sla is None else str(question.sla),
        "seed": seed,
        "num_devices": question.num_devices,
        "num_draws": question.num_draws,
        "is_interrupted": is_interrupted,
        "metrics": [
            {"key": key, "name": metric_name(key), "direction": "less" if is_less else "more"}
            for key, is_less in keys.items()
        ],
        "cases": [_case_json(each, static, list(keys)) for each in runs],
        "best_static": None if static is None else _label(static),
        "best": {
            key: found
            for key, is_less in keys.items()
            if (found := _best_json(able, key, is_less=is_less)) is not None
        },
        "workload": question.load.describe(),
        **origin,
        "warnings": [*warnings, *_warnings(question)],
        "notes": [ORACLE] if any(each.case.kind is Kind.BOUND for each in runs) else [],
    }
    return {**document, "answer": answer_lines(document)}


def _case_json(each: Runs, static: Runs | None, keys: list[str]) -> dict[str, Any]:
    case = each.case
    changes = {}
    if static is not None and each.draws and each is not static:
        changes = {
            key: change.to_json()
            for key in keys
            if (change := _change(each, static, key)) is not None
        }
    return {
        "name": case.name,
        "label": _label(each),
        "kind": case.kind.value,
        "settings": None if case.settings is None else case.settings.to_json(),
        "plan": None if case.settings is None else case.settings.plan_text,
        "reason": case.reason,
        "draws_met": each.num_met if each.draws else None,
        "metrics": {key: _metric_json(each, key) for key in keys if each.draws},
        "against_best_static": changes,
    }


def _label(each: Runs) -> str:
    """Hybrids have one name together, so the plan tells them apart."""
    settings = each.case.settings
    if settings is None or each.case.kind is Kind.BOUND:
        return each.case.name
    # A mode table chooses by times, not by thresholds.
    text = str(settings.plan) if settings.pin == TABLE else settings.plan_text
    return f"{each.case.name} ({text})"


def _metric_json(each: Runs, key: str) -> dict[str, Any]:
    values = [flat.get(key) for flat in each.draws]
    known = [value for value in values if value is not None]
    whole = finite(fmean(known)) if known and len(known) == len(values) else None
    return {"mean": whole, "draws": [finite(value) for value in values]}


def _change(each: Runs, other: Runs, key: str) -> Change | None:
    pairs = [(a.get(key), b.get(key)) for a, b in zip(each.draws, other.draws, strict=True)]
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    if len(known) < len(pairs):
        return None
    return paired_change([a for a, _ in known], [b for _, b in known])


def _best_json(able: Sequence[Runs], key: str, *, is_less: bool) -> dict[str, Any] | None:
    """The best case by ``key`` that can really be set, and how far the next one is behind."""
    ranked = sorted(
        (
            (mean if is_less else -mean, number)
            for number, each in enumerate(able)
            if each.case.kind is not Kind.BOUND
            and (mean := _metric_json(each, key)["mean"]) is not None
        ),
    )
    if not ranked:
        return None
    best, *others = (able[number] for _, number in ranked)
    change = _change(best, others[0], key) if others else None
    return {
        "case": _label(best),
        "next": _label(others[0]) if others else None,
        "change": None if change is None else change.to_json(),
        "is_beyond_noise": change is not None and change.is_beyond_noise,
    }


def _warnings(question: ComparisonQuestion) -> list[str]:
    if len(question.load) < 2 or (question.load.closed is None and question.load.span_s == 0):
        return ["all requests come at once, so all draws are alike: there is no noise to judge by"]
    return []


def answer_lines(document: dict[str, Any]) -> list[str]:
    """What Shift gains over the best static plan, and what is best by each metric."""
    static = document["best_static"]
    if static is None:
        return ["no static plan can run, so there is nothing to compare with"]
    shifts = [c for c in document["cases"] if c["kind"] == Kind.SHIFT and c["metrics"]]
    if not shifts:
        reasons = {c["reason"] for c in document["cases"] if c["kind"] == Kind.SHIFT}
        why = f": {'; '.join(sorted(reasons))}" if reasons else ""
        return [f"best static plan: {static}; Shift cannot run here{why}"]
    names = {metric["key"]: metric["name"] for metric in document["metrics"]}
    lines = [f"best static plan: {static}"]
    for case in shifts:
        parts = [
            f"{names[key]} {Change.from_json(change)}"
            for key, change in case["against_best_static"].items()
        ]
        if parts:
            lines.append(f"{case['label']} against it: {', '.join(parts)}")
    return lines


def best_rows(document: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """For each metric the best, the next, and how far they are apart."""
    names = {metric["key"]: metric["name"] for metric in document["metrics"]}
    rows = []
    for key, best in document["best"].items():
        change = best["change"]
        told = "-" if change is None else str(Change.from_json(change))
        rows.append((names[key], best["case"], best["next"] or "-", told))
    return rows
