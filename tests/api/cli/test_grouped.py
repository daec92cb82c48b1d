"""Options that belong together: users see each of them, the command gets one value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from api.cli.grouped import grouped


@dataclass(frozen=True, kw_only=True)
class Key:
    key: Annotated[str | None, typer.Option(envvar="TEST_KEY", help="Its key.")] = None


@dataclass(frozen=True, kw_only=True)
class Address:
    host: Annotated[str, typer.Option(help="Where.")]
    port: Annotated[int, typer.Option(min=1, help="Which.")] = 80
    access: Key


@dataclass(frozen=True, kw_only=True)
class SafeAddress(Address):
    port: Annotated[int, typer.Option(help="Which safe one.")] = 443


Called = list[tuple[Address, str, bool]]
RUNNER = CliRunner(env={"COLUMNS": "120", "TEST_KEY": "k"})


def _app(command: Callable[..., None]) -> typer.Typer:
    app = typer.Typer()
    app.command()(command)
    return app


def _calling(called: Called, help_order: str = "") -> typer.Typer:
    def call(path: str, address: Address, is_loud: bool = False) -> None:
        """Call an address."""
        called.append((address, path, is_loud))

    return _app(grouped(help_order)(call))


def test_a_command_gets_its_groups_as_values_beside_its_own_options() -> None:
    called: Called = []
    app = _calling(called)
    assert RUNNER.invoke(app, ["/x", "--host", "h", "--is-loud"]).exit_code == 0
    assert RUNNER.invoke(app, ["--host", "h", "--port", "7", "/y"]).exit_code == 0
    assert called == [
        (Address(host="h", port=80, access=Key(key="k")), "/x", True),
        (Address(host="h", port=7, access=Key(key="k")), "/y", False),
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["/x"], "Missing option '--host'"),
        (["/x", "--host", "h", "--port", "0"], "Invalid value for '--port'"),
        (["/x", "--host", "h", "--address", "a"], "No such option: --address"),
    ],
)
def test_mistakes_are_told_as_of_any_option(words: list[str], message: str) -> None:
    result = RUNNER.invoke(_calling([]), words)
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize(
    ("help_order", "shown"),
    [
        ("", ["--host", "--port", "--key", "--is-loud"]),
        ("is_loud key", ["--is-loud", "--key", "--host", "--port"]),
    ],
)
def test_the_help_lists_options_group_by_group_or_in_the_order_named(
    help_order: str, shown: list[str]
) -> None:
    text = RUNNER.invoke(_calling([], help_order), ["--help"]).stdout
    assert "Call an address." in text
    places = [text.index(option) for option in shown]
    assert places == sorted(places)


def test_a_group_that_says_an_option_otherwise_keeps_its_place() -> None:
    called: list[SafeAddress] = []

    def call(address: SafeAddress) -> None:
        called.append(address)

    app = _app(grouped()(call))
    text = RUNNER.invoke(app, ["--help"]).stdout
    assert text.index("--host") < text.index("Which safe one.") < text.index("--key")
    assert RUNNER.invoke(app, ["--host", "h"]).exit_code == 0
    (address,) = called
    assert isinstance(address, SafeAddress)
    assert (address.port, address.access.key) == (443, "k")


def test_one_option_in_two_groups_is_refused_with_its_name() -> None:
    def call(address: Address, other: SafeAddress) -> None: ...

    with pytest.raises(TypeError, match="call: host, key, port in two groups"):
        grouped()(call)


def test_an_order_that_names_no_option_is_refused() -> None:
    def call(address: Address) -> None: ...

    with pytest.raises(TypeError, match="call: no group has hots"):
        grouped("port hots")(call)
