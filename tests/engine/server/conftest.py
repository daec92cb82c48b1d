"""A real server on a loopback port, over a real engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import uvicorn

from engine.engine import Engine
from engine.models.create import create_model
from engine.nvml.monitor import DeviceMonitor
from engine.server.app import create_server
from engine.server.connections import ServerConfig
from engine.server.defaults import SamplingDefaults
from engine.server.keys import ServerKeys
from engine.server.spans import Traces
from engine.spec.config import EngineConfig, ExecutorKind
from engine.spec.limits import RequestLimits
from engine.spec.modes import AUTO, ModePin
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Settings
from engine.spec.steps import StepShape
from engine.text.tokenizer import Tokenizer
from tests.servers import in_thread

MODEL = "tiny"
SHIFT_PLAN = ParallelPlan(sp=2, tp=2, shift=True)


@dataclass(frozen=True, kw_only=True)
class FixedTimer:
    """Every step takes the same time on every stage."""

    plan: ParallelPlan
    step_s: float

    def stage_seconds(self, shape: StepShape) -> tuple[float, ...]:
        return (self.step_s / self.plan.pp,) * self.plan.pp

    def host_seconds(self, shape: StepShape) -> float:
        return 0.0


@dataclass(frozen=True, kw_only=True)
class Server:
    """A running server and the engine behind it."""

    url: str
    engine: Engine
    tokenizer: Tokenizer
    http: httpx.Client

    def chat_tokens(self, messages: list[dict[str, str]]) -> list[int]:
        """The prompt of a conversation; the template itself writes the special tokens."""
        text = self.tokenizer.chat_text(messages)
        return self.tokenizer.encode(text, add_special_tokens=False)

    def complete(self, **body: object) -> httpx.Response:
        return self.http.post("/v1/completions", json={"model": MODEL, **body})

    def chat(self, **body: object) -> httpx.Response:
        return self.http.post("/v1/chat/completions", json={"model": MODEL, **body})


@contextmanager
def serving(
    engine: Engine,
    model_dir: Path,
    *,
    keys: ServerKeys | None = None,
    defaults: SamplingDefaults | None = None,
    limits: RequestLimits | None = None,
    logs_requests: bool = False,
    traces: Traces | None = None,
) -> Iterator[Server]:
    """Serve ``engine`` with uvicorn on a free loopback port until the block ends."""
    tokenizer = Tokenizer.from_dir(model_dir)
    limits = limits or RequestLimits()
    app = create_server(
        engine,
        tokenizer,
        model_name=MODEL,
        keys=keys,
        defaults=defaults,
        limits=limits,
        logs_requests=logs_requests,
        traces=traces,
    )
    config = ServerConfig(app, limits, log_level="warning", lifespan="off")
    with (
        in_thread(uvicorn.Server(config)) as url,
        httpx.Client(base_url=url, timeout=60) as http,
    ):
        yield Server(url=url, engine=engine, tokenizer=tokenizer, http=http)


def simulated_engine(
    model_dir: Path,
    *,
    step_s: float,
    caps: Caps | None = None,
    pin: ModePin = AUTO,
    plan: ParallelPlan = SHIFT_PLAN,
    monitor: DeviceMonitor | None = None,
) -> Engine:
    """An engine whose steps only take time: slow enough to look at requests in progress."""
    tokenizer = Tokenizer.from_dir(model_dir)
    return Engine(
        EngineConfig(
            model_dir=model_dir,
            executor=ExecutorKind.SIMULATED,
            num_kv_blocks=1024,
            max_devices=4,
            settings=Settings(plan=plan, caps=caps or Caps(), pin=pin),
        ),
        tokenizer=tokenizer,
        timer_factory=lambda plan: FixedTimer(plan=plan, step_s=step_s),
        monitor=monitor,
    )


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    create_model(folder, preset="tiny", seed=1)
    return folder


@pytest.fixture(scope="session")
def server(tiny_dir: Path) -> Iterator[Server]:
    """A server over one real rank."""
    tokenizer = Tokenizer.from_dir(tiny_dir)
    config = EngineConfig(model_dir=tiny_dir, num_kv_blocks=512)
    with Engine(config, tokenizer=tokenizer) as engine, serving(engine, tiny_dir) as running:
        yield running


@pytest.fixture(scope="session")
def slow_server(tiny_dir: Path) -> Iterator[Server]:
    """A server over a simulated engine of four ranks with steps of 10 ms."""
    with (
        simulated_engine(tiny_dir, step_s=0.01) as engine,
        serving(engine, tiny_dir) as running,
    ):
        yield running


def refusal(reply: httpx.Response, status: int = 400) -> dict[str, str]:
    """The error object of a reply that refuses with ``status``."""
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/json"
    error: dict[str, str] = reply.json()["error"]
    return error
