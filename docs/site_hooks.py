"""Hooks of the site (``mkdocs.yml``): pages link to files beside ``docs``, which come along under
``repository/``."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # whatever mkdocs was started from

from docs.reference_pages import REDOC, redoc_file, reference_pages  # noqa: E402

BESIDE = ("CONTRIBUTING.md", "deploy/README.md", "deploy/keda/scaled-object.yaml")
REPORTS = "benchmarks/reports"
UNDER = "repository"
SECTION = re.compile(r"<!-- section: (\S+)#([^>]+?) -->")
LINK = re.compile(r"(\]\()([^)#\s]+)((?:#[^)]*)?\))")


def on_files(files: Files, config: Any) -> Files:
    """Add what pages link to beside ``docs``, a list of the reports, and the reference."""
    reports = sorted((ROOT / REPORTS).glob("*.md"))
    for path in (*BESIDE, *(f"{REPORTS}/{report.name}" for report in reports)):
        files.append(File.generated(config, f"{UNDER}/{path}", abs_src_path=str(ROOT / path)))
    rows = "\n".join(f"* [{report.stem}]({report.name})" for report in reversed(reports))
    listed = f"# Reports, newest first\n\n{rows}\n"
    files.append(File.generated(config, f"{UNDER}/{REPORTS}/index.md", content=listed))
    for path, content in reference_pages().items():
        files.append(File.generated(config, path, content=content))
    files.append(File.generated(config, REDOC, abs_src_path=str(redoc_file())))
    return files


def on_page_markdown(markdown: str, *, page: Any, files: Files, **_: Any) -> str:
    """Lead links out of ``docs`` to where their files came along."""
    here = page.file.src_uri
    is_beside = here.startswith(f"{UNDER}/")
    source = here.removeprefix(f"{UNDER}/") if is_beside else f"docs/{here}"

    def lead(found: re.Match[str]) -> str:
        target = found[2]
        if "://" in target or target.startswith(("/", "mailto:")):
            return found[0]
        path = os.path.normpath(PurePosixPath(source).parent / target)
        inside = path.startswith("docs/")
        site = path.removeprefix("docs/") if inside else f"{UNDER}/{path}"
        if (ROOT / path).is_dir():
            site += "/index.md" if files.get_file_from_path(f"{site}/index.md") else "/README.md"
        if files.get_file_from_path(site) is None:
            # Source files are named, not shown.
            return found[0] if inside else f"]({found[3][:-1]})" if found[3] != ")" else "]"
        return f"{found[1]}{os.path.relpath(site, PurePosixPath(here).parent)}{found[3]}"

    return LINK.sub(lead, SECTION.sub(_section, markdown))


def _section(found: re.Match[str]) -> str:
    """What a report has under a heading, below it."""
    text = (ROOT / found[1]).read_text()
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))[found[2]].strip()
