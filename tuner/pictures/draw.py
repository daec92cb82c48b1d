"""Files of pictures: a page to hover over and zoom into, or a still."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from tuner.pictures.picture import Picture
from tuner.spec.errors import TunerError

PAGE = ".html"
SUFFIXES = (PAGE, ".svg", ".png", ".pdf")


def check_plot(path: Path) -> None:
    """Refuse a picture that could not be drawn, before hours of work.

    Raises:
        TunerError: another kind of file, or what draws it is not installed.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise TunerError(f"plot {path}: write a file that ends in {', '.join(SUFFIXES)}")
    require_drawing(suffix)


def require_drawing(suffix: str) -> None:
    """Raises TunerError where what draws such files is not installed."""
    library = "plotly" if suffix == PAGE else "matplotlib"
    if find_spec(library) is None:
        raise TunerError(f"{suffix} files need {library}: pip install 'gearshift[plots]'")


def draw(path: Path, picture: Picture) -> None:
    """Write the picture in the format that the file's name ends in.

    The same picture gives the same bytes. A page holds all it needs and loads nothing.

    Raises:
        TunerError: as :func:`check_plot`.
        OSError: the file cannot be written.
    """
    check_plot(path)
    if path.suffix.lower() == PAGE:
        from tuner.pictures.page import page_of

        path.write_text(page_of(picture), encoding="utf-8")
    else:
        from tuner.pictures.still import write_still

        write_still(path, picture)
