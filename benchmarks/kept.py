"""What a benchmark has measured so far, in a file, so that the same command goes on with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ASKED = "asked"


class KeptRuns:
    """A JSON document in ``file``, begun with ``empty``, of runs that ``asked`` describes.

    Raises:
        SystemExit: the file has runs of something else; they must not be mixed.
    """

    def __init__(
        self, file: Path, *, asked: dict[str, Any], empty: dict[str, Any], is_fresh: bool = False
    ) -> None:
        self._file = file
        asked = json.loads(json.dumps(asked))
        self.document: dict[str, Any] = {ASKED: asked, **empty}
        if is_fresh or not file.exists():
            return
        self.document = json.loads(file.read_text())
        if (before := self.document[ASKED]) != asked:
            raise SystemExit(f"{file} has runs of {before}, not of {asked}; name another folder")

    def keep(self) -> None:
        """Write down what is in the document now."""
        self._file.write_text(json.dumps(self.document))
