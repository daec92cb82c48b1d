"""A server may have as many clients connected as it says, whatever its shell begins with."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

ASK = (
    "import resource; from engine.server.open_files import make_room; "
    "from engine.spec.limits import RequestLimits; "
    "print(make_room(RequestLimits(max_connections={})).max_connections, "
    "*resource.getrlimit(resource.RLIMIT_NOFILE))"
)


@pytest.mark.parametrize(
    ("limits", "wanted", "found"),
    [
        ((64, 2000), 1000, (1000, 1256, 2000)),
        ((64, 1100), 1000, (844, 1100, 1100)),
        ((64, 300), 1000, (150, 300, 300)),
        ((1500, 2000), 1000, (1000, 1500, 2000)),
    ],
    ids=["raised", "as far as it goes", "little", "enough"],
)
def test_the_limit_of_open_files_is_raised_for_the_connections(
    limits: tuple[int, int], wanted: int, found: tuple[int, int, int]
) -> None:
    answer = subprocess.run(
        [sys.executable, "-c", ASK.format(wanted)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, limits),
        capture_output=True,
        text=True,
        check=True,
    )
    assert tuple(map(int, answer.stdout.split())) == found
