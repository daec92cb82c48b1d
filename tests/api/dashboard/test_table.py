"""Tables: the browser has the rows that it shows, and no others."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from nicegui import Client, ui
from nicegui.events import GenericEventArguments

from api.dashboard.layout import Row, Table, table


@pytest.fixture
def client() -> Iterator[Client]:
    """A page that nobody has opened."""
    found = Client(ui.page("/table"), request=None)
    with found:
        yield found
    found.delete()


def _rows(count: int) -> list[Row]:
    return [{"key": number, "name": f"trial {number}"} for number in range(count)]


def _names(shown: Table) -> list[str]:
    return [row["name"] for row in shown.rows]


def _turn_to(shown: Table, client: Client, page: int) -> None:
    """As the browser asks."""
    wanted = {"pagination": {**shown.pagination, "page": page}}
    shown._turn(GenericEventArguments(sender=shown, client=client, args=wanted))


def test_one_page_of_many_rows_is_sent_and_the_others_when_it_is_turned(client: Client) -> None:
    shown = table([("name", "Name")], _rows(45), page=20)
    assert _names(shown) == [f"trial {n}" for n in range(20)]
    assert shown.pagination["rowsNumber"] == 45
    assert not shown.props["hide-pagination"]
    _turn_to(shown, client, 3)
    assert _names(shown) == [f"trial {n}" for n in range(40, 45)]
    shown.show_rows(_rows(46))
    assert _names(shown)[-1] == "trial 45", "who reads the last page sees what comes"


def test_a_page_that_is_gone_gives_way_to_the_last_one(client: Client) -> None:
    shown = table([("name", "Name")], _rows(45), page=20)
    _turn_to(shown, client, 3)
    shown.show_rows(_rows(7))
    assert (len(shown.rows), shown.pagination["page"]) == (7, 1)
    assert shown.props["hide-pagination"], "there is nothing to turn"
    shown.show_rows([])
    assert shown.rows == []


def test_a_table_without_pages_shows_all(client: Client) -> None:
    shown = table([("name", "Name")], _rows(300))
    assert len(shown.rows) == 300
    assert shown.props["hide-pagination"]
