"""``gearshift list``: what may be named, built in and of the user's own."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from api.cli.common import fail, print_json
from api.cli.engine_options import JsonOption

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tuner.described.catalog import Listed


class Kind(StrEnum):
    """What there are lists of."""

    MODELS = "models"
    HARDWARE = "hardware"
    BACKENDS = "backends"
    LINKS = "links"


def list_names(
    kind: Annotated[Kind, typer.Argument(help="What to list.")], as_json: JsonOption = False
) -> None:
    """List what may be named: models, hardware, backends or links.

    Files in the folder that GEARSHIFT_CATALOG names (sub-folders devices, links, backends, models)
    are listed with their path. A file that cannot be read is told at the end, with exit code 2.
    """
    found = _catalog(kind)
    if as_json:
        print_json({kind.value: [asdict(item) for item in found]})
    else:
        _print([item for item in found if item.error is None])
    if errors := [item.error for item in found if item.error is not None]:
        fail("; ".join(errors))


def _catalog(kind: Kind) -> Sequence[Listed]:
    from tuner.described import catalog

    match kind:
        case Kind.MODELS:
            return catalog.catalog_models()
        case Kind.HARDWARE:
            return catalog.catalog_hardware()
        case Kind.BACKENDS:
            return catalog.catalog_backends()
        case Kind.LINKS:
            return catalog.catalog_links()


def _print(found: Sequence[Listed]) -> None:
    from rich.console import Console
    from rich.table import Table

    headings = found[0].brief if found else ()
    table = Table("name", *headings, "from")
    for item in found:
        table.add_row(item.name, *map(_text, item.brief.values()), item.origin)
    Console().print(table)


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
