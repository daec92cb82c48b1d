"""The README and the tutorials can be followed: their commands run in order in one folder each, the
long ones by ``make test-slow``; and whatever any page shows is taken by the command it names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.newcomer import SLA_MISSED, TIMEOUT_S, Newcomer, check
from tests.docs.readme_commands import ShownCommand, list_lines, read_commands
from tests.docs.typed import take
from tests.rooms import ROOT

PAGES = sorted(
    [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").glob("*.md")]
)
FOLLOWED = [page for page in PAGES if read_commands(page.read_text()) and page.name != "README.md"]
COMMANDS = read_commands((ROOT / "README.md").read_text())
# These measure the machine for a minute or two, need what they measured, judge every plan, or send
# requests for ten seconds of a core and a half.
LONG = ("gearshift bench", "gearshift plan")
QUICK = [command for command in COMMANDS if not command.text.startswith(LONG)]
SIMULATED = read_commands((ROOT / "docs" / "described-hardware.md").read_text())


def _id(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Newcomer]:
    found = Newcomer(tmp_path_factory.mktemp("newcomer"))
    yield found
    found.close()


@pytest.mark.timeout(TIMEOUT_S)
@pytest.mark.parametrize("command", [*QUICK, *SIMULATED], ids=lambda command: command.text[:60])
def test_a_command_does_what_its_page_shows(newcomer: Newcomer, command: ShownCommand) -> None:
    check(newcomer, command)


@pytest.mark.slow
@pytest.mark.timeout(3 * TIMEOUT_S)
@pytest.mark.parametrize("page", [ROOT / "README.md", *FOLLOWED], ids=_id)
def test_a_whole_page_can_be_followed_in_order(page: Path, tmp_path: Path) -> None:
    newcomer = Newcomer(tmp_path)
    try:
        for command in read_commands(page.read_text()):
            code = check(newcomer, command)
            if code == SLA_MISSED and command.text.startswith("gearshift tune"):
                pytest.skip("no plan meets the page's SLA on this machine now")
    finally:
        newcomer.close()


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_commands_take_the_words_that_a_page_shows(page: Path) -> None:
    for line in list_lines(page.read_text()):
        try:
            take(line)
        except Exception as error:
            raise AssertionError(f"{line}: {error!r}") from error


def test_the_readme_has_commands_and_some_always_print_the_same() -> None:
    assert len(COMMANDS) >= 8
    assert sum(command.is_same_every_time for command in COMMANDS) >= 4
    assert len((ROOT / "README.md").read_text().splitlines()) <= 250
