"""``gearshift serve`` that tells how many blocks of memory Python has handed out: what it holds.

Resident memory also rises where the allocator keeps room after a busy moment; this count does not.
Every ``GEARSHIFT_COUNT_EVERY_S`` seconds a line with the count goes to the file that
``GEARSHIFT_COUNT_FILE`` names, after a search of the garbage collector (which holds up whoever asks
meanwhile: times of such a service say nothing).

    python -m benchmarks.counted_service serve --json
"""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from pathlib import Path

FILE, EVERY_S = "GEARSHIFT_COUNT_FILE", "GEARSHIFT_COUNT_EVERY_S"


def main() -> None:
    """Serve, and count beside it."""
    # Not among the service's own variables, which would be refused as misspelt.
    path, every_s = Path(os.environ.pop(FILE)), float(os.environ.pop(EVERY_S))
    threading.Thread(target=_count, args=(path, every_s), daemon=True).start()
    from api.cli.main import main as serve

    serve()


def _count(path: Path, every_s: float) -> None:
    while True:
        time.sleep(every_s)
        gc.collect()
        with path.open("a") as file:
            file.write(f"{time.time():.0f} {sys.getallocatedblocks()}\n")


if __name__ == "__main__":
    main()
