"""The rooms of the house: ``python -m tests.rooms`` prints them, and fails on a broken order.

A room is a folder of a package; the files beside its rooms are the package's own, written ``.``.
``ORDER`` is the written order: a room imports only rooms named before it.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("engine", "policies", "tuner", "store", "api", "gearshift")
FRONT = "."

ORDER: dict[str, tuple[str, ...]] = {
    "engine": (
        "spec",
        "nvml",
        "modes",
        "transition",
        "policy",
        "scheduler",
        "wire",
        "kernels",
        "parallel",
        "sampling",
        "models",
        "rank",
        "executors",
        "text",
        "replica",
        FRONT,
        "server",
        "server.front",
    ),
    "policies": (FRONT,),
    "tuner": (
        "spec",
        "workload",
        "load",
        "work",
        "hardware",
        "backends",
        "profiling",
        "step_model",
        FRONT,
        "simulation",
        "launch",
        "described",
        "servers",
        "capacity",
        "search",
        "planner",
        "comparison",
        "pictures",
        "report",
        "answers",
        "calibration",
        "imports",
    ),
    "store": ("models", FRONT),
    "api": (
        "schemas",
        "documents",
        "aside",
        "web",
        "services",
        "routes",
        "dashboard",
        "control",
        "observed",
        "jobs",
        FRONT,
        "agent",
        "clients",
        "doctor",
        "demo",
        "cli",
    ),
    "gearshift": (FRONT,),
}


@dataclass(frozen=True, order=True)
class Room:
    """A folder of a package, ``engine.scheduler``, or its own files, ``engine``."""

    package: str
    name: str

    def __str__(self) -> str:
        return self.package if self.name == FRONT else f"{self.package}.{self.name}"

    @property
    def place(self) -> int:
        """Where it stands in the written order over all packages; raises for an unwritten one."""
        before = sum(len(ORDER[p]) for p in PACKAGES[: PACKAGES.index(self.package)])
        return before + ORDER[self.package].index(self.name)


@dataclass(frozen=True)
class House:
    """Files by dotted name, the room of each, and which of the house's files each imports."""

    rooms: Mapping[str, Room]
    imports: Mapping[str, frozenset[str]]
    sentences: Mapping[Room, str]

    def edges(self) -> dict[tuple[Room, Room], int]:
        """How many imports go from one room to another."""
        return Counter(
            (self.rooms[module], self.rooms[other])
            for module, others in self.imports.items()
            for other in others
            if self.rooms[module] != self.rooms[other]
        )

    def list_files(self, room: Room) -> list[str]:
        return sorted(m for m, r in self.rooms.items() if r == room and not _is_init(m))


@cache
def syntax_tree(text: str) -> ast.Module:
    """That of a file; all of them take seconds, and nobody changes them."""
    return ast.parse(text)


def read_house(root: Path = ROOT) -> House:
    """Read every file of the packages under ``root``."""
    files = {
        _dotted(path.relative_to(root)): path
        for package in PACKAGES
        for path in sorted((root / package).rglob("*.py"))
    }
    trees = {module: syntax_tree(path.read_text()) for module, path in files.items()}
    rooms = {module: _room(module) for module in files}
    imports = {
        module: frozenset(_imports(tree, files) - {module}) for module, tree in trees.items()
    }
    sentences = {
        rooms[module]: (ast.get_docstring(tree) or "").split("\n\n")[0].replace("\n", " ")
        for module, tree in trees.items()
        if _is_init(module) and module.removesuffix(".__init__") == str(rooms[module])
    }
    return House(rooms=rooms, imports=imports, sentences=sentences)


def faults(house: House) -> list[str]:
    """What breaks the order: unwritten or missing rooms, and imports against it."""
    there = set(house.rooms.values())
    written = {Room(package, name) for package, names in ORDER.items() for name in names}
    found = [f"{room} has no place in the written order" for room in sorted(there - written)]
    found += [f"{room} is written and not there" for room in sorted(written - there)]
    found += [
        f"{room}: its __init__ does not say what belongs there"
        for room in sorted(there & written)
        if not house.sentences.get(room)
    ]
    for module, others in sorted(house.imports.items()):
        for other in sorted(others):
            room, its_room = house.rooms[module], house.rooms[other]
            if {room, its_room} <= written and its_room.place > room.place:
                found.append(f"{module} imports {other}: {its_room} stands after {room}")
    return found


def two_way_pairs(house: House) -> list[tuple[Room, Room]]:
    """Pairs of rooms that import each other."""
    edges = house.edges()
    return sorted((a, b) for a, b in edges if a < b and (b, a) in edges)


def storeys(graph: Mapping[str, Iterable[str]]) -> int:
    """The longest chain of imports; files that import each other in a circle stand side by side."""
    circle_of = {node: frozenset(circle) for circle in circles(graph) for node in circle}
    whole = {node: circle_of.get(node, frozenset({node})) for node in graph}
    heights: dict[frozenset[str], int] = {}

    def height(group: frozenset[str]) -> int:
        if group not in heights:
            below = {whole[n] for node in group for n in graph[node] if n in whole} - {group}
            heights[group] = 1 + max(map(height, below), default=0)
        return heights[group]

    return max(map(height, whole.values()), default=0)


def circles(graph: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Sets of nodes that reach each other."""
    reached = {node: _reached(graph, node) for node in graph}
    found = {
        tuple(sorted({node} | {n for n in reached[node] if node in reached[n]}))
        for node in graph
        if node in reached[node]
    }
    return [list(circle) for circle in sorted(found)]


def _reached(graph: Mapping[str, Iterable[str]], start: str) -> set[str]:
    seen: set[str] = set()
    ahead = [n for n in graph[start] if n in graph]
    while ahead:
        node = ahead.pop()
        if node not in seen:
            seen.add(node)
            ahead += [n for n in graph[node] if n in graph]
    return seen


def _dotted(path: Path) -> str:
    return ".".join(path.with_suffix("").parts)


def _is_init(module: str) -> bool:
    return module.endswith(".__init__")


def _room(module: str) -> Room:
    package, *folders = module.split(".")[:-1]
    # Only the front process has a room inside a room; other inner folders are part of theirs.
    name = ".".join(folders)
    while name and name not in ORDER[package] and "." in name:
        name = name.rpartition(".")[0]
    return Room(package, name or FRONT)


def _imports(tree: ast.AST, files: Mapping[str, Path]) -> set[str]:
    return {
        found for name in _imported_names(tree) if (found := _find_file(name, files)) is not None
    }


def _imported_names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{name.name}" for name in node.names)


def _find_file(name: str, files: Mapping[str, Path]) -> str | None:
    """The file a dotted name lies in: ``a.b.C`` is in ``a.b``, or in the folder ``a/b``."""
    for module in (name, name.rpartition(".")[0]):
        for candidate in (module, f"{module}.__init__"):
            if candidate in files:
                return candidate
    return None


def _print_house(house: House, *, has_edges: bool) -> None:
    edges = house.edges()
    for package in PACKAGES:
        inside = {m: o for m, o in house.imports.items() if house.rooms[m].package == package}
        rooms = sorted(
            {house.rooms[m] for m in inside},
            key=lambda r: (r.place if r.name in ORDER[r.package] else -1, r),
        )
        print(
            f"{package}: {len(rooms)} rooms, {storeys(inside)} storeys of files, "
            f"{len(circles(inside))} circles"
        )
        for room in rooms:
            names = house.list_files(room)
            print(f"  {room.name:13} {len(names):3} files  {house.sentences.get(room, '')}")
            if has_edges:
                own = sorted((b.place, b, n) for (a, b), n in edges.items() if a == room)
                print(" " * 18 + "<- " + ", ".join(f"{b} {n}" for _, b, n in own))
    stems = Counter(m.rpartition(".")[2] for m in house.rooms if not _is_init(m))
    flat = {r: len(house.list_files(r)) for r in set(house.rooms.values())}
    largest = max(flat, key=lambda room: flat[room])
    pairs = two_way_pairs(house)
    print(f"imports between rooms: {sum(edges.values())} along {len(edges)} pairs")
    print(f"largest room: {largest}, {flat[largest]} files")
    print(f"file names that stand more than once: {sum(n > 1 for n in stems.values())}")
    print(f"two-way pairs of rooms: {len(pairs)}")
    for a, b in pairs:
        print(f"  {a} and {b}")
    for circle in circles(house.imports):
        print(f"files in a circle: {', '.join(circle)}")


def main() -> int:
    """Print the house; 1 when its order is broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.rooms", description=main.__doc__)
    parser.add_argument("--imports", action="store_true", help="show what each room imports")
    parser.add_argument("--root", type=Path, default=ROOT, help="another checkout")
    options = parser.parse_args()
    house = read_house(options.root)
    found = faults(house)
    _print_house(house, has_edges=options.imports and not found)
    print(f"against the written order: {len(found)}")
    for line in found[:20]:
        print(f"  {line}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
