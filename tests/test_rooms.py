"""The tool that prints the house finds what breaks its order, in houses made for it."""

from __future__ import annotations

from pathlib import Path

from tests import rooms


def build(root: Path, files: dict[str, str]) -> rooms.House:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        (path.parent / "__init__.py").write_text('"""A room."""\n')
    return rooms.read_house(root)


def test_an_import_from_a_later_room_is_named(tmp_path: Path) -> None:
    house = build(
        tmp_path,
        {
            "engine/spec/plan.py": "def f():\n    from engine.modes.pace import Pace\n",
            "engine/modes/pace.py": "class Pace: ...\n",
        },
    )
    against = "engine.spec.plan imports engine.modes.pace: engine.modes stands after engine.spec"
    assert against in rooms.faults(house)
    assert rooms.two_way_pairs(house) == []


def test_two_rooms_that_import_each_other_are_a_pair_and_their_files_a_circle(
    tmp_path: Path,
) -> None:
    house = build(
        tmp_path,
        {
            "tuner/work/counts.py": "import tuner.load.driver\n",
            "tuner/load/driver.py": "from tuner.work import counts\n",
        },
    )
    pair = (rooms.Room("tuner", "load"), rooms.Room("tuner", "work"))
    assert rooms.two_way_pairs(house) == [pair]
    assert rooms.circles(house.imports) == [["tuner.load.driver", "tuner.work.counts"]]
    assert rooms.storeys(house.imports) == 1


def test_a_folder_without_a_place_and_a_room_without_a_sentence_are_named(tmp_path: Path) -> None:
    build(tmp_path, {"store/models/base.py": "", "store/attic/old.py": ""})
    (tmp_path / "store/models/__init__.py").write_text("")
    found = rooms.faults(rooms.read_house(tmp_path))
    assert "store.attic has no place in the written order" in found
    assert "store.models: its __init__ does not say what belongs there" in found
    assert "engine.spec is written and not there" in found


def test_storeys_count_the_longest_chain_of_imports() -> None:
    assert rooms.storeys({"a": ["b", "c"], "b": ["c"], "c": [], "d": []}) == 3
