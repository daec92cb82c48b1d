"""The PromQL of ``deploy/``: where it stands, and which metrics it names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml

from tests.rooms import ROOT

DEPLOY = ROOT / "deploy"
RULES = DEPLOY / "prometheus" / "rules.yml"
BOARD = DEPLOY / "grafana" / "gearshift.json"

# What is no metric in a query: texts, label matchers, label lists, durations, Grafana's variables.
_TEXT = re.compile(r'"[^"]*"')
_NO_METRIC = re.compile(
    r"\{[^}]*\}|\[[^\]]*\]|\b(?:by|on|without|ignoring)\s*\([^)]*\)|\boffset\s+\w+|\$\w+"
)
_WORD = re.compile(r"[A-Za-z_:][\w:]*")
_FUNCTION = re.compile(r"[a-z_]\w*(?=\s*\()")
_OPERATORS = {"and", "or", "unless", "bool", "sum", "max", "min", "avg", "count"}


def rules() -> list[dict[str, Any]]:
    """Every rule, recording ones too."""
    return [
        rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
    ]


def panels() -> list[dict[str, Any]]:
    """The board's panels with queries."""
    found: list[dict[str, Any]] = json.loads(BOARD.read_text())["panels"]
    return [panel for panel in found if panel["type"] != "row"]


def scalers() -> Iterator[str]:
    """The queries by which KEDA scales."""
    for path in sorted((DEPLOY / "keda").glob("*.yaml")):
        for trigger in yaml.safe_load(path.read_text())["spec"]["triggers"]:
            yield trigger["metadata"]["query"]


def queries() -> list[str]:
    """Every query of ``deploy/``."""
    shown = [target["expr"] for panel in panels() for target in panel["targets"]]
    variables = json.loads(BOARD.read_text())["templating"]["list"]
    asked = [v["definition"] for v in variables if "definition" in v]
    asked = [re.sub(r"label_values\((.*), \w+\)", r"\1", query) for query in asked]
    return [rule["expr"] for rule in rules()] + shown + asked + list(scalers())


def metrics_in(query: str) -> set[str]:
    """Names of the metrics that a query reads."""
    bare = _NO_METRIC.sub(" ", _TEXT.sub("", query))
    functions = set(_FUNCTION.findall(bare))
    words = {word for word in _WORD.findall(bare) if not word.startswith(":")}
    return words - functions - _OPERATORS
