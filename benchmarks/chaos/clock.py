"""The wall clock of chosen programs, which jumps when told to."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("clock.c")


class ShiftedClock:
    """A library to preload, and the file that says by how many seconds a program's clock is off.

    It cannot be had without a C compiler (``is_there``). The monotonic clock stays as it is.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / "clock"
        self._library = folder / "clock.so"
        compiler = shutil.which("cc") or shutil.which("gcc")
        self.is_there = False
        if compiler is not None:
            command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(self._library), str(SOURCE)]
            done = subprocess.run([*command, "-ldl"], capture_output=True, check=False, timeout=60)
            self.is_there = done.returncode == 0
        self.shift(0)

    def variables(self) -> dict[str, str]:
        """What a program needs in its environment to have this clock."""
        if not self.is_there:
            return {}
        return {"LD_PRELOAD": str(self._library), "CHAOS_CLOCK": str(self._file)}

    def shift(self, seconds: int) -> None:
        """Set how far the clock is off."""
        with self._file.open("r+b" if self._file.exists() else "w+b") as file:
            file.write(struct.pack("<q", seconds))
