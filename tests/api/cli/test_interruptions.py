"""Ctrl-C in the middle of the work, as a terminal sends it: to the whole process group."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

LOAD = "poisson:rate=50,input=900,output=400,seconds=1000"
NODE = ("--model", "llama-3.1-70b", "--hardware", "8xh200", "--workload", LOAD)
# Stopped, tune still says what it found, which takes as long as its workload is.
SHORT = ("--model", "llama-3.1-8b", "--hardware", "2xh200", "--devices", "2", "--workload",
         "poisson:rate=5,input=900,output=40,requests=40")  # fmt: skip
SLA = ("--sla", "p95_ttft_ms<=500")
LOCAL = ("--workload", "poisson:rate=4,input=64,output=32,seconds=10")


@pytest.mark.parametrize(
    ("words", "at_work"),
    [
        (("simulate", *NODE, "--plan", "tp=8", "--backend", "gearshift"), "warning: Gearshift"),
        (("plan", *NODE, *SLA, "--jobs", "2"), "plan: plans 0/"),
        pytest.param(
            ("tune", *SHORT, *SLA),
            "prepared: ",
            marks=pytest.mark.slow,  # after its trials it is stopped each time (test_tune_kept.py)
        ),
        pytest.param(
            ("tune", "--model", "MODEL", *LOCAL, *SLA),
            "profiling: operators",
            marks=pytest.mark.slow,  # it is profiled as by the next one
        ),
        (("profile", "--model", "MODEL", "--out", "p.json"), "profile: operators"),
    ],
    ids=["simulate", "plan", "tune", "tune here", "profile"],
)
def test_ctrl_c_is_one_line_and_exit_code_130(
    tiny_dir: Path, tmp_path: Path, words: tuple[str, ...], at_work: str
) -> None:
    words = tuple(str(tiny_dir) if word == "MODEL" else word for word in words)
    with subprocess.Popen(
        [sys.executable, "-m", "api.cli.main", *words],
        env={**os.environ, "GEARSHIFT_DATA_DIR": str(tmp_path), "PYTHONPATH": os.getcwd()},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
        # A shell lets what it starts in the background ignore Ctrl-C, and its children with it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            seen = next((line for line in process.stderr if line.startswith(at_work)), None)
            assert seen, "it ended before it was at work"
            os.killpg(process.pid, signal.SIGINT)
            said = process.stderr.read()
            assert process.wait(timeout=60) == 130, said
        finally:
            process.kill()
        answer = process.stdout.read()
    assert "Traceback" not in said
    if "stopping: " in said:  # tune had begun its search, and tells what it found
        assert "go on from here" in answer
    else:
        assert answer == ""
        assert said.splitlines()[-1] == "interrupted"
