"""``gearshift engine serve``: one engine behind an OpenAI-compatible server."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from api.cli.common import fail, log, print_json
from api.cli.engine_options import (
    BackendOption,
    DeviceOption,
    JsonOption,
    ModelOption,
    ModeTableOption,
    NoOverlapOption,
    NoParallelSamplingOption,
    NoPrefixCacheOption,
    PlanOption,
    ServeModeOption,
    SpareRanksOption,
    WideDTypeOption,
    check_device,
    read_dtype,
    read_settings,
)

if TYPE_CHECKING:
    from engine.engine import Engine
    from engine.fleet import TimerFactory
    from engine.spec.config import EngineConfig
    from engine.spec.plan import ParallelPlan
    from tuner.described.node import Node

MIB = 2**20
# The label vLLM gives its first engine.
DEFAULT_ENGINE_NAME = "0"


def serve(
    model: ModelOption,
    plan: PlanOption = "tp=1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 picks a free one.")] = 8000,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    mode: ServeModeOption = None,
    mode_table: ModeTableOption = None,
    max_num_seqs: Annotated[int, typer.Option(min=1, help="Sequences per step.")] = 64,
    max_num_batched_tokens: Annotated[int, typer.Option(min=1, help="Tokens per step.")] = 2048,
    max_queue: Annotated[
        int | None, typer.Option(min=0, help="Waiting requests beyond which callers get 429.")
    ] = None,
    max_model_len: Annotated[
        int | None, typer.Option(min=1, help="Context in tokens; by default the model's.")
    ] = None,
    dtype: WideDTypeOption = "auto",
    device: DeviceOption = "cpu",
    max_devices: Annotated[
        int | None, typer.Option(min=1, help="Devices a reshape may use.")
    ] = None,
    kv_cache_mib: Annotated[int, typer.Option(min=1, help="KV cache per rank.")] = 256,
    block_size: Annotated[int, typer.Option(min=1, help="Tokens per KV block.")] = 16,
    link: Annotated[
        str | None,
        typer.Option(help="Emulated link between CPU ranks, as in latency_us=20,gbps=100."),
    ] = None,
    no_overlap: NoOverlapOption = False,
    no_parallel_sampling: NoParallelSamplingOption = False,
    no_prefix_cache: NoPrefixCacheOption = False,
    spare_ranks: SpareRanksOption = 0,
    paced: Annotated[
        str | None,
        typer.Option(
            metavar="HARDWARE",
            help="No ranks: steps take the time they would on this hardware, as in 8xh200.",
        ),
    ] = None,
    backend: BackendOption = None,
    served_model_name: Annotated[
        str | None, typer.Option(help="Name in the API; by default the folder's.")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            help="This engine's identity in metrics and, over restarts, at the control plane; "
            "there by default MODEL@HOST:PORT."
        ),
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="GEARSHIFT_ENGINE_KEY", help="Required under /v1.")
    ] = None,
    control: Annotated[
        str | None, typer.Option(metavar="URL", help="Control plane to register with.")
    ] = None,
    control_key: Annotated[
        str | None, typer.Option(envvar="GEARSHIFT_CONTROL_KEY", help="Its key.")
    ] = None,
    drain_s: Annotated[
        int, typer.Option(min=0, help="At the end, seconds for requests in progress to finish.")
    ] = 30,
    frontends: Annotated[
        int,
        typer.Option(
            min=0,
            max=1,
            help="Processes for HTTP and text, beside the one that steps; 0: all in one process.",
        ),
    ] = 1,
    as_json: JsonOption = False,
) -> None:
    """Serve a model until SIGTERM or SIGINT; one line on stdout tells the address when ready."""
    from engine.spec.config import EngineConfig, ExecutorKind, LinkEmulation
    from engine.spec.plan import parse_plan
    from engine.spec.settings import Caps

    spec = parse_plan(plan)
    caps = Caps(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_queue=max_queue,
    )
    if backend is not None and paced is None:
        fail(f"--backend {backend} is for described hardware: add --paced, as in 8xh200")
    node = None
    if paced is not None:
        node = _node(model, paced, spec.plan, dtype, backend, block_size, max_model_len)
    config = EngineConfig(
        model_dir=model,
        settings=read_settings(spec, caps, mode),
        dtype=read_dtype(dtype, model) if node is None else node.precision.dtype,
        device=check_device(device),
        kv_cache_bytes=kv_cache_mib * MIB,
        block_size=block_size,
        max_model_len=max_model_len,
        max_devices=max_devices,
        link=LinkEmulation.parse(link) if link else None,
        overlap=not no_overlap,
        parallel_sampling=not no_parallel_sampling,
        prefix_cache=not no_prefix_cache,
        spare_ranks=spare_ranks,
        mode_table_path=mode_table,
        # One rank, too, in a process of its own: it computes beside the server, not in its turns.
        executor=ExecutorKind.PROCESS,
    )
    house = _House(
        host=host,
        port=port,
        model_name=served_model_name or model.resolve().name,
        engine_name=name,
        api_key=api_key,
        control_url=control,
        control_key=control_key,
        drain_s=drain_s,
        has_front=frontends > 0,
        as_json=as_json,
    )
    if node is None:
        _run(config, None, house)
    else:
        _run(*_pace(config, node), house)


def _node(
    model: Path,
    hardware: str,
    plan: ParallelPlan,
    dtype: str,
    backend: str | None,
    block_size: int,
    max_model_len: int | None,
) -> Node:
    from tuner.described.parse import DEFAULT_BACKEND, check_served, describe_node

    node = describe_node(
        model=str(model),
        hardware=hardware,
        dtype=dtype,
        backend=backend or DEFAULT_BACKEND,
        block_size=block_size,
        max_model_len=max_model_len,
    )
    check_served(node, plan)
    return node


@dataclass(frozen=True, kw_only=True)
class _House:
    """Where the engine is served, under which names and keys."""

    host: str
    port: int
    model_name: str
    engine_name: str | None
    api_key: str | None
    control_url: str | None
    control_key: str | None
    drain_s: int
    has_front: bool
    as_json: bool


def _run(config: EngineConfig, timer_factory: TimerFactory | None, house: _House) -> None:
    if not (config.model_dir / "tokenizer.json").exists():
        fail(f"{config.model_dir}: no tokenizer.json; a server needs one")
    _warn(config, house)
    with ExitStack() as stack:
        listener = stack.enter_context(_listen(house))
        serving = _Serving(
            config=config,
            timer_factory=timer_factory,
            house=house,
            listener=listener,
            stack=stack,
        )
        if house.has_front:
            serving.with_front()
        else:
            serving.in_process()


@dataclass(frozen=True, kw_only=True)
class _Serving:
    """One engine behind one listener, until it is told to end; ``stack`` then ends its parts."""

    config: EngineConfig
    timer_factory: TimerFactory | None
    house: _House
    listener: socket.socket
    stack: ExitStack

    def with_front(self) -> None:
        """Step here; HTTP and text in a process of their own, which starts while the ranks do."""
        from engine.engine import Engine
        from engine.server.front.house import FrontHouse
        from engine.server.front.messages import FrontSetup

        engine = Engine(self.config, timer_factory=self.timer_factory)
        setup = FrontSetup(
            model_dir=str(self.config.model_dir),
            model_name=self.house.model_name,
            engine_name=self._engine_name,
            api_key=self.house.api_key,
            drain_s=self.house.drain_s,
            model=engine.model,
            envelope=engine.envelope,
        )
        front = self.stack.enter_context(FrontHouse(engine, setup, self.listener))
        self.stack.enter_context(engine)
        front.run(
            on_ready=lambda: self._ready(engine),
            on_restart=lambda why: log(f"warning: the HTTP front end {why}; starting another"),
        )

    def in_process(self) -> None:
        """Everything in this process."""
        from engine.engine import Engine
        from engine.server import create_server
        from engine.server.front.serving import announce_and_run
        from engine.text.tokenizer import Tokenizer

        tokenizer = Tokenizer.from_dir(self.config.model_dir)
        engine = self.stack.enter_context(
            Engine(self.config, tokenizer=tokenizer, timer_factory=self.timer_factory)
        )
        app = create_server(
            engine,
            tokenizer,
            model_name=self.house.model_name,
            api_key=self.house.api_key,
            engine_name=self._engine_name,
        )
        announce_and_run(
            app,
            self.listener,
            drain_s=self.house.drain_s,
            on_ready=lambda: self._ready(engine),
        )

    @property
    def _engine_name(self) -> str:
        return self.house.engine_name or DEFAULT_ENGINE_NAME

    def _ready(self, engine: Engine) -> None:
        _ready(engine, self.house, _url(self.listener, self.house.host), self.stack)


def _pace(config: EngineConfig, node: Node) -> tuple[EngineConfig, TimerFactory]:
    """The same engine on hardware that is not here: its memory, its devices, its step times."""
    from tuner.described.parse import paced_config

    there = replace(paced_config(config, node), max_devices=node.hardware.count)
    return there, node.timer


def _warn(config: EngineConfig, house: _House) -> None:
    from engine.spec.model import ModelConfig
    from engine.text.ends import read_end_tokens

    model = ModelConfig.from_dir(config.model_dir)
    if notice := read_end_tokens(config.model_dir, model).notice:
        log(notice)
    if warning := config.settings.threshold_warning:
        log(f"warning: {warning}")
    if house.api_key is None and house.host not in ("127.0.0.1", "::1", "localhost"):
        log(f"warning: listening on {house.host} without --api-key: anyone may change this engine")


def _listen(house: _House) -> socket.socket:
    family = socket.AF_INET6 if ":" in house.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((house.host, house.port))
    except OSError as error:
        listener.close()
        fail(f"cannot listen on {house.host}:{house.port}: {error.strerror or error}")
    return listener


def _url(listener: socket.socket, host: str) -> str:
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{listener.getsockname()[1]}"


def _ready(engine: Engine, house: _House, url: str, stack: ExitStack) -> None:
    """Say where the server is, and join the control plane if there is one."""
    plan = str(engine.settings.plan)
    if house.as_json:
        print_json({"url": url, "model": house.model_name, "plan": plan})
    else:
        typer.echo(f"ready: {url} serves {house.model_name} with plan {plan}")
    if house.control_url is None:
        return
    from api.agent.agent import EngineAgent

    agent = EngineAgent(
        engine=engine,
        control_url=house.control_url,
        api_key=house.control_key,
        public_url=url,
        name=house.engine_name,
    )
    agent.start()
    stack.callback(agent.stop)
