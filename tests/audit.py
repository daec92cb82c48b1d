"""Known vulnerabilities of what is installed: ``python -m tests.audit``.

Ends with 1 if there are any, and with 2 if nothing could be learnt, as where the registry is not
reached or does not tell of vulnerabilities.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

COMMAND = ("-m", "pip_audit", "--skip-editable", "--progress-spinner", "off", "--format", "json")
TIMEOUT_S = 600


def report(answer: str) -> tuple[list[str], int]:
    """What a JSON answer of pip-audit says, as lines, and how to end."""
    packages: list[dict[str, Any]] = json.loads(answer)["dependencies"]
    looked_up = [package for package in packages if "skip_reason" not in package]
    lines = [
        f"{package['name']} {package['version']}: {found['id']}, {_way_out(found['fix_versions'])}"
        for package in looked_up
        for found in package["vulns"]
    ]
    status = 1 if lines else 0
    if len(looked_up) < len(packages):
        missed = len(packages) - len(looked_up)
        lines.append(f"the registry did not answer for {missed} of {len(packages)} packages")
    if not looked_up:
        return [*lines, "nothing is known of any: run this where PyPI is reached"], 2
    return [*lines, f"{len(looked_up)} packages looked up"], status


def _way_out(versions: Sequence[str]) -> str:
    return f"mended in {', '.join(versions)}" if versions else "not mended in any version"


def main() -> int:
    """Print the report."""
    done = subprocess.run(
        [sys.executable, *COMMAND], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    if not done.stdout.startswith("{"):
        print(f"pip-audit learnt nothing: {done.stderr.strip()[-500:]}")
        return 2
    lines, status = report(done.stdout)
    print("\n".join(lines))
    return status


if __name__ == "__main__":
    sys.exit(main())
