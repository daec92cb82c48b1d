"""Names that others give, shown as they are and never taken for attributes or code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from nicegui import Client, ui

from api.dashboard import layout

# Of attributes that begin with a colon the browser runs the value.
HOSTILE = 'a" :onclick="window.hurt = 1" innerHTML="<img src=x onerror=alert(1)>'
PAGES = Path(layout.__file__).parent


@pytest.fixture
def client() -> Iterator[Client]:
    """A page that nobody has opened."""
    found = Client(ui.page("/names"), request=None)
    with found:
        yield found
    found.delete()


@pytest.mark.usefixtures("client")
def test_a_name_in_a_question_is_read_out_whole_and_sets_nothing_else() -> None:
    question = f"Remove {HOSTILE}?"
    with layout.dialog(question) as asked:
        assert asked.props["aria-label"] == question
    shown = layout.chart({}, HOSTILE)
    assert shown.props["aria-label"] == f"Chart: {HOSTILE}"
    for element in (asked, shown):
        assert {":onclick", "innerHTML"}.isdisjoint(element.props)


def test_attributes_made_of_values_are_set_one_by_one() -> None:
    """What ``props(...)`` is given is taken apart, so it must be written in the code itself."""
    for path in PAGES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "props":
                given = [argument for argument in node.args if _has_value(argument)]
                assert not given, f"{path.name}:{node.lineno}: set it as props[NAME] = VALUE"


def _has_value(argument: ast.expr) -> bool:
    return any(isinstance(part, ast.JoinedStr | ast.BinOp) for part in ast.walk(argument))
