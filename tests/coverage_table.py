"""Lines that the last measured run of the suite executed: ``python -m tests.coverage_table``.

One line per package, from the data that ``pytest --cov`` leaves. Nothing is gated.
"""

from __future__ import annotations

import io

from coverage import Coverage


def main() -> None:
    """Print the table."""
    found = Coverage()
    found.load()
    print("lines covered (code that runs in rank, front-end and worker processes is not counted)")
    for package in found.get_option("run:source"):
        percent = found.report(include=f"{package}/*", file=io.StringIO())
        print(f"  {package:<11} {percent:5.1f} %")


if __name__ == "__main__":
    main()
