"""What pages name of the tree: files, what stands in them, modules, methods and each other.

Read are ``engine/spec/plan.py``, ``engine/spec/plan.py::ParallelPlan.stage_size`` and
``engine.spec.plan.ParallelPlan`` anywhere in a page, ``Engine.apply`` in backticks or at the
beginning of a picture's label (a class of the packages and its member), ``python -m module`` and
links. A part in capitals, as in ``engine/spec/families/NAME.py``, stands for something the reader
chooses.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import gearshift
from engine.spec.extensions import ExtensionPoint
from tests.rooms import PACKAGES, ROOT, syntax_tree

FOLDERS = (*PACKAGES, "migrations", "tests", "benchmarks", "docs")
_TOP = "|".join(FOLDERS)
_PATH = re.compile(rf"(?<![\w/.-])((?:{_TOP})/[\w./*-]*)(?:::([\w.]+))?")
_DOTTED = re.compile(rf"(?<![\w/.-])((?:{_TOP})(?:\.\w+)+)(?![\w/])")
_METHOD = re.compile(r"""[`"]([A-Z][a-z]\w*)\.([a-z_]\w*)""")
_LINK = re.compile(r"\]\(([^)#\s]+)(?:#[\w-]*)?\)")
_PLACEHOLDER = re.compile(r"\b[A-Z]{2,}\b")


def list_faults(text: str, *, folder: Path = ROOT, root: Path = ROOT) -> list[str]:
    """What ``text``, a page in ``folder``, names and ``root`` does not have, in its words."""
    return [
        *_path_faults(text, root),
        *_dotted_faults(text, root),
        *_method_faults(text, root),
        *_link_faults(text, folder),
    ]


def _path_faults(text: str, root: Path) -> Iterator[str]:
    for match in _PATH.finditer(text):
        path, name = match[1].rstrip("."), (match[2] or "").rstrip(".")
        if _PLACEHOLDER.search(path) and not (root / path).exists():
            continue
        found = list(root.glob(path.rstrip("/"))) if "*" in path else [root / path]
        if not found or not found[0].exists():
            yield f"{path}: no such file"
        elif name and not _stands_in(found[0], name.split(".")):
            yield f"{path}::{name}: no such name in it"


# What our package brings besides modules: names it hands on, and groups of entry points.
_NAMED_ELSEWHERE = {*ExtensionPoint, *(f"gearshift.{name}" for name in gearshift.__all__)}


def _dotted_faults(text: str, root: Path) -> Iterator[str]:
    for match in _DOTTED.finditer(text):
        parts = match[1].split(".")
        if parts[-1] in ("md", "json", "py", "toml") or _PLACEHOLDER.search(match[1]):
            continue
        if match[1] in _NAMED_ELSEWHERE:
            continue
        if not any(_is_there(root, parts[:end], parts[end:]) for end in range(len(parts), 0, -1)):
            yield f"{match[1]}: no such module, nor a name in one"


def _is_there(root: Path, module: list[str], names: list[str]) -> bool:
    base = root.joinpath(*module)
    file = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
    return file.exists() and (not names or _stands_in(file, names))


def _method_faults(text: str, root: Path) -> Iterator[str]:
    classes = _classes(root)
    for name, member in _METHOD.findall(text):
        if not any(_member(owner, member) for owner in classes.get(name, ())):
            yield f"{name}.{member}: no class of the packages has it"


def _link_faults(text: str, folder: Path) -> Iterator[str]:
    for target in _LINK.findall(text):
        if "://" not in target and not (folder / target).exists():
            yield f"({target}): leads nowhere"


@cache
def _tree(file: Path) -> ast.Module:
    return syntax_tree(file.read_text())


@cache
def _classes(root: Path) -> dict[str, list[ast.ClassDef]]:
    found: dict[str, list[ast.ClassDef]] = {}
    for package in PACKAGES:
        for file in (root / package).rglob("*.py"):
            for node in _tree(file).body:
                if isinstance(node, ast.ClassDef):
                    found.setdefault(node.name, []).append(node)
    return found


def _stands_in(file: Path, names: list[str]) -> bool:
    """Whether ``names`` (a class and its member, or one name) stand in a Python file."""
    if file.suffix != ".py":
        return False
    found = _member(_tree(file), names[0])
    if found is None or len(names) == 1:
        return found is not None
    return isinstance(found, ast.ClassDef) and _member(found, names[1]) is not None


def _member(owner: ast.Module | ast.ClassDef, name: str) -> ast.AST | None:
    for node in owner.body:
        if name in _names(node):
            return node
    return None


def _names(node: ast.stmt) -> set[str]:
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return {node.name}
        case ast.Assign():
            return {target.id for target in node.targets if isinstance(target, ast.Name)}
        case ast.AnnAssign(target=ast.Name(id=name)):
            return {name}
        case ast.ImportFrom() | ast.Import():
            return {alias.asname or alias.name for alias in node.names}
        case _:
            return set()
