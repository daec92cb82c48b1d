"""Pages name what is there: a file, function, class or page that goes takes its words with it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.references import list_faults
from tests.rooms import FRONT, ORDER, PACKAGES, ROOT, Room, read_house

PAGES = sorted([ROOT / "CONTRIBUTING.md", ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
HOW_TO = sorted((ROOT / "docs" / "how-to").glob("*.md"))
ONE_SCREEN = 50


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_everything_a_page_names_is_there(page: Path) -> None:
    assert list_faults(page.read_text(), folder=page.parent) == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("see engine/spec/plans.py.", "engine/spec/plans.py: no such file"),
        ("`engine/spec/plan.py::Plan`", "engine/spec/plan.py::Plan: no such name in it"),
        (
            "`engine/engine.py::Engine.obey`",
            "engine/engine.py::Engine.obey: no such name in it",
        ),
        (
            "python -m tuner.calibration.fits",
            "tuner.calibration.fits: no such module, nor a name in one",
        ),
        ("`Engine.obey`", "Engine.obey: no class of the packages has it"),
        ('A -- "Engine.obey: now" --> B', "Engine.obey: no class of the packages has it"),
        ("[index](docs/none.md)", "(docs/none.md): leads nowhere"),
    ],
)
def test_what_is_not_there_is_told(text: str, fault: str) -> None:
    assert fault in list_faults(text)


def test_what_is_there_and_what_a_reader_chooses_is_no_fault() -> None:
    text = (
        "`engine/engine.py::Engine.apply`, `Engine.apply()`, engine.spec.measurement.METRIC_IDS, "
        "tests/contracts/, engine/spec/families/NAME.py, [contributing](CONTRIBUTING.md)"
    )
    assert list_faults(text) == []


@pytest.mark.parametrize("page", HOW_TO, ids=lambda page: page.stem)
def test_a_how_to_is_one_screen_of_numbered_steps_that_end_in_a_check(page: Path) -> None:
    text = page.read_text()
    assert len(text.splitlines()) <= ONE_SCREEN
    assert re.search(r"^1\. ", text, re.MULTILINE)
    assert re.search(r"^    (python -m pytest|gearshift) ", text, re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_command_in_a_list_is_shown_as_one(page: Path) -> None:
    markdown = pytest.importorskip("markdown")
    shown = markdown.markdown(page.read_text(), extensions=["tables", "fenced_code"])
    assert re.findall(r"<p>(?:[A-Z_]+=\S+ )*(?:gearshift|curl|python -m) .*", shown) == []


def test_pages_that_code_cites_exist() -> None:
    cited = {
        name
        for package in PACKAGES
        for file in (ROOT / package).rglob("*.py")
        for name in re.findall(r"\bdocs/[\w/-]+\.md", file.read_text())
    }
    assert cited
    assert [name for name in sorted(cited) if not (ROOT / name).exists()] == []


def test_the_index_of_decisions_lists_each_with_its_title_and_what_replaced_it() -> None:
    folder = ROOT / "docs" / "decisions"
    index = (folder / "README.md").read_text()
    for page in sorted(folder.glob("0*.md")):
        text = page.read_text()
        number, title = re.findall(r"^# (\d+)\. (.+)$", text, re.MULTILINE)[0]
        row = next(line for line in index.splitlines() if f"| [{number}]({page.name}) |" in line)
        assert f"| {title} |" in row
        replaced_by = re.findall(r"^\*Replaced .*by decision (\d+)", text, re.MULTILINE)
        assert re.findall(r"replaced .*?by \[(\d+)\]", row) == replaced_by


def test_the_page_of_rooms_tells_each_in_its_order_with_its_own_sentence() -> None:
    page = (ROOT / "docs" / "rooms.md").read_text()
    told = re.findall(r"^\| `([\w.]+)`(?: itself)? \| (.+) \|$", page, re.MULTILINE)
    house = read_house()
    rooms = [Room(package, name) for package in PACKAGES for name in ORDER[package]]
    listed = [room for room in rooms if room.name != FRONT]
    assert [name for name, _ in told if "." in name] == [str(room) for room in listed]
    assert {name: words for name, words in told if "." in name} == {
        str(room): house.sentences[room] for room in listed
    }
    for package in PACKAGES:
        assert f"**`{package}`**: {house.sentences[Room(package, FRONT)]}" in page


def test_pictures_are_small_and_shown() -> None:
    folder = ROOT / "docs" / "pictures"
    shown = "".join(page.read_text() for page in PAGES)
    for picture in folder.iterdir():
        assert picture.stat().st_size < 150_000, picture
        assert f"pictures/{picture.name})" in shown, picture
    made = (ROOT / "docs" / "make_pictures.py").read_text()
    drawn = {picture.name for picture in folder.glob("*.svg")}
    assert drawn == set(re.findall(r'^        "([\w-]+\.svg)": ', made, re.MULTILINE))
