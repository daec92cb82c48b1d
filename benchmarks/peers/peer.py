"""One peer: a child process that loads a model and answers timed questions."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

HERE = Path(__file__).parent
STOP_TIMEOUT_S = 30.0


@dataclass(frozen=True, kw_only=True)
class PeerSpec:
    """How to start a peer; ``environment`` is added to that of this process."""

    name: str
    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Seconds that a question took, and the tokens of each prompt."""

    seconds: float
    tokens: list[list[int]]


class Peer:
    """Runs while it is asked and is stopped (SIGSTOP) else: idle threads that spin would slow the
    others. Use as a context manager.
    """

    def __init__(self, spec: PeerSpec, log: Path) -> None:
        self.spec = spec
        with log.open("ab") as stderr:
            self._process = subprocess.Popen(
                spec.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=_environment(spec),
                start_new_session=True,
                text=True,
            )
        self.load_s = float(self._read()["ready"])
        self._signal(signal.SIGSTOP)

    def __enter__(self) -> Peer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._signal(signal.SIGCONT)
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self._process.wait()

    def ask(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> Answer:
        """Generate ``num_tokens`` for each prompt, all submitted at once.

        Raises:
            RuntimeError: the peer ended.
        """
        assert self._process.stdin is not None
        self._signal(signal.SIGCONT)
        question = {"prompts": prompts, "num_tokens": num_tokens}
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        found = self._read()
        self._signal(signal.SIGSTOP)
        return Answer(seconds=found["seconds"], tokens=found["tokens"])

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.spec.name} ended with {self._process.wait()}; see the log")
        found: dict[str, Any] = json.loads(line)
        return found

    def _signal(self, number: int) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return


def ours(name: str, checkpoint: Path, dtype: str, plan: str, *arguments: str) -> PeerSpec:
    """This engine; a rank computes with the threads that its default gives."""
    module = "benchmarks.peers.run_ours"
    command = (sys.executable, "-m", module, str(checkpoint), dtype, plan, *arguments)
    return PeerSpec(name=name, command=command)


def vllm(name: str, python: Path, checkpoint: Path, dtype: str, tp: int) -> PeerSpec:
    """vLLM's CPU build in its own environment; torch's own OpenMP is loaded first, without which
    it is several times slower.
    """
    libraries = python.parent.parent / "lib"
    openmp = next(libraries.glob("python3*/site-packages/torch/lib/libgomp*.so*"))
    return PeerSpec(
        name=name,
        command=(str(python), str(HERE / "run_vllm.py"), str(checkpoint), dtype, str(tp)),
        environment={
            "LD_PRELOAD": str(openmp),
            "VLLM_CPU_KVCACHE_SPACE": "2",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
            "DO_NOT_TRACK": "1",
            "OMP_NUM_THREADS": "2" if tp == 1 else "1",
        },
    )


def openvino(name: str, python: Path, exported: Path, precision: str) -> PeerSpec:
    """OpenVINO GenAI in its own environment, on a folder that ``optimum-cli`` exported."""
    command = (str(python), str(HERE / "run_openvino.py"), str(exported), precision)
    return PeerSpec(name=name, command=command)


def _environment(spec: PeerSpec) -> dict[str, str]:
    """Threads are each peer's own affair: what this process was told does not bind it."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("OMP_")}
    return {**inherited, **spec.environment}
