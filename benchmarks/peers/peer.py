"""One peer: a child process that loads a model and answers timed questions."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

HERE = Path(__file__).parent
STOP_TIMEOUT_S = 30.0


@dataclass(frozen=True, kw_only=True)
class PeerSpec:
    """How to start a peer; ``environment`` is added to that of this process."""

    name: str
    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def whole_environment(self) -> dict[str, str]:
        """Threads are each peer's own affair: what this process was told does not bind it."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("OMP_")}
        return {**inherited, **self.environment}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Seconds that a question took, and the tokens of each prompt."""

    seconds: float
    tokens: list[list[int]]


class PausedChild:
    """A program in a session of its own, stopped (SIGSTOP) except while it works: idle threads
    that spin would slow the others. Use as a context manager.
    """

    def __init__(self, spec: PeerSpec, *, stdin: int | None, stdout: int | None, log: Path) -> None:
        self.spec = spec
        with log.open("ab") as told:
            self._process = subprocess.Popen(
                spec.command,
                stdin=stdin,
                stdout=told if stdout is None else stdout,
                stderr=told,
                env=spec.whole_environment,
                start_new_session=True,
                text=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Tell it to end, and after a while kill it and its children."""
        self._signal(signal.SIGCONT)
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_TIMEOUT_S)
        self._signal(signal.SIGKILL)
        self._process.wait()

    @contextmanager
    def working(self) -> Iterator[None]:
        """It runs while the block does."""
        self._signal(signal.SIGCONT)
        yield
        self._signal(signal.SIGSTOP)

    @property
    def cpu_s(self) -> float:
        """Seconds of CPU that it and its children, of its session all, have had."""
        ticks = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = stat.read_text().rpartition(")")[2].split()
                if int(fields[3]) == self._process.pid:
                    ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def _signal(self, number: int) -> None:
        """Signal it and its children; nothing if they are gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


class Peer(PausedChild):
    """Loads a model and answers timed questions (``loop.py``)."""

    def __init__(self, spec: PeerSpec, log: Path) -> None:
        super().__init__(spec, stdin=subprocess.PIPE, stdout=subprocess.PIPE, log=log)
        with self.working():
            self.load_s = float(self._read()["ready"])

    def ask(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> Answer:
        """Generate ``num_tokens`` for each prompt, all submitted at once.

        Raises:
            RuntimeError: the peer ended.
        """
        assert self._process.stdin is not None
        question = {"prompts": prompts, "num_tokens": num_tokens}
        with self.working():
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            found = self._read()
        return Answer(seconds=found["seconds"], tokens=found["tokens"])

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self.end()
            raise RuntimeError(f"{self.spec.name} ended; see the log")
        found: dict[str, Any] = json.loads(line)
        return found


def end_on_sigterm() -> None:
    """SIGTERM ends this process as Ctrl-C does, so that no stopped peer is left behind."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def ours(name: str, checkpoint: Path, dtype: str, plan: str, *arguments: str) -> PeerSpec:
    """This engine; a rank computes with the threads that its default gives."""
    module = "benchmarks.peers.run_ours"
    command = (sys.executable, "-m", module, str(checkpoint), dtype, plan, *arguments)
    return PeerSpec(name=name, command=command)


def vllm(name: str, python: Path, checkpoint: Path, dtype: str, tp: int) -> PeerSpec:
    """vLLM's CPU build in its own environment, embedded."""
    environment = {**vllm_environment(python, tp), "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    command = (str(python), str(HERE / "run_vllm.py"), str(checkpoint), dtype, str(tp))
    return PeerSpec(name=name, command=command, environment=environment)


def vllm_environment(python: Path, tp: int) -> dict[str, str]:
    """torch's own OpenMP is loaded first: without it vLLM is several times slower here."""
    libraries = python.parent.parent / "lib"
    openmp = next(libraries.glob("python3*/site-packages/torch/lib/libgomp*.so*"))
    return {
        "LD_PRELOAD": str(openmp),
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "DO_NOT_TRACK": "1",
        "OMP_NUM_THREADS": "2" if tp == 1 else "1",
    }


def openvino(name: str, python: Path, exported: Path, precision: str) -> PeerSpec:
    """OpenVINO GenAI in its own environment, on a folder that ``optimum-cli`` exported."""
    command = (str(python), str(HERE / "run_openvino.py"), str(exported), precision)
    return PeerSpec(name=name, command=command)
