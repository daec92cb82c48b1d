"""What a command starts ends with it, also by SIGTERM."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from tests.processes import wait_gone

SCRIPT = """
import sys, time
from pathlib import Path
from api.demo.processes import Children

folder = Path(sys.argv[1])
with Children(folder, {"GEARSHIFT_DATA_DIR": sys.argv[1]}) as children:
    child, _ = children.start("service", "serve", "--port", "0")
    print(child.pid, flush=True)
    time.sleep(600)
"""


def test_a_command_that_is_told_to_end_leaves_no_child(tmp_path: Path) -> None:
    command = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "GEARSHIFT_DASHBOARD": "false", "GEARSHIFT_RUN_WORKER": "false"},
    )
    assert command.stdout is not None
    service = int(command.stdout.readline())
    assert psutil.pid_exists(service)
    command.send_signal(signal.SIGTERM)
    command.wait(60)
    command.stdout.close()
    wait_gone([service])
