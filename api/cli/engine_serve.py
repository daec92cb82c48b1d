"""``gearshift engine serve``: one engine behind an OpenAI-compatible server."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

import typer

from api.cli.common import fail, log, print_json
from api.cli.engine_options import (
    DeviceOption,
    DTypeOption,
    JsonOption,
    ModelOption,
    ModeOption,
    PlanOption,
    check_device,
    find_tokenizer,
    read_dtype,
    read_threshold,
)

if TYPE_CHECKING:
    from engine.config import Caps, EngineConfig
    from engine.engine import Engine, TimerFactory

MIB = 2**20
# The label vLLM gives its first engine.
DEFAULT_ENGINE_NAME = "0"


def serve(
    model: ModelOption,
    plan: PlanOption = "tp=1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 picks a free one.")] = 8000,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    mode: ModeOption = "auto",
    max_num_seqs: Annotated[int, typer.Option(min=1, help="Sequences per step.")] = 64,
    max_num_batched_tokens: Annotated[int, typer.Option(min=1, help="Tokens per step.")] = 2048,
    max_queue: Annotated[
        int | None, typer.Option(min=0, help="Waiting requests beyond which callers get 429.")
    ] = None,
    max_model_len: Annotated[
        int | None, typer.Option(min=1, help="Context in tokens; by default the model's.")
    ] = None,
    dtype: DTypeOption = "auto",
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
    paced: Annotated[
        str | None,
        typer.Option(
            metavar="HARDWARE",
            help="No ranks: steps take the time they would on this hardware, as in 8xh200.",
        ),
    ] = None,
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
    as_json: JsonOption = False,
) -> None:
    """Serve a model until SIGTERM or SIGINT; one line on stdout tells the address when ready."""
    from engine.config import Caps, EngineConfig, ExecutorKind, LinkEmulation
    from engine.plan import parse_plan

    spec = parse_plan(plan)
    config = EngineConfig(
        model_dir=model,
        plan=spec.plan,
        threshold_tokens=read_threshold(spec.threshold_tokens),
        mode=mode,
        caps=Caps(
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_queue=max_queue,
        ),
        dtype=read_dtype(dtype, model),
        device=check_device(device),
        kv_cache_bytes=kv_cache_mib * MIB,
        block_size=block_size,
        max_model_len=max_model_len,
        max_devices=max_devices,
        link=LinkEmulation.parse(link) if link else None,
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
        as_json=as_json,
    )
    _run(config, paced, house)


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
    as_json: bool


def _run(config: EngineConfig, paced: str | None, house: _House) -> None:
    from api.serving import announce_and_run
    from engine.engine import Engine
    from engine.server import create_server

    tokenizer = find_tokenizer(config.model_dir)
    if tokenizer is None:
        fail(f"{config.model_dir}: no tokenizer.json; a server needs one")
    timer_factory: TimerFactory | None = None
    if paced is not None:
        config, timer_factory = _pace(config, paced)
    _warn(config, house)
    with ExitStack() as stack:
        listener = stack.enter_context(_listen(house))
        url = _url(listener, house.host)
        engine = stack.enter_context(
            Engine(config, tokenizer=tokenizer, timer_factory=timer_factory)
        )
        app = create_server(
            engine,
            tokenizer,
            model_name=house.model_name,
            api_key=house.api_key,
            engine_name=house.engine_name or DEFAULT_ENGINE_NAME,
        )
        announce_and_run(
            app,
            listener,
            drain_s=house.drain_s,
            on_ready=lambda: _ready(engine, house, url, stack),
        )


def _pace(config: EngineConfig, paced: str) -> tuple[EngineConfig, TimerFactory]:
    """The same engine on hardware that is not here: its memory, its devices, its step times."""
    from engine.config import ExecutorKind, ModelConfig
    from tuner.hardware import paced_timer, parse_hardware

    hardware = parse_hardware(paced)
    model = ModelConfig.from_dir(config.model_dir)
    paced_config = replace(
        config,
        executor=ExecutorKind.SIMULATED,
        device_memory_bytes=int(hardware.device.memory_bytes),
        memory_utilization=hardware.device.efficiency.usable_memory,
        max_devices=hardware.count,
    )
    return paced_config, lambda plan: paced_timer(hardware, model, plan, config.dtype)


def _warn(config: EngineConfig, house: _House) -> None:
    from engine.plan import shift_warning

    seqs: Caps = config.caps
    warning = shift_warning(config.plan, config.threshold_tokens, seqs.max_num_seqs)
    if warning:
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
    plan = str(engine.policy.plan)
    if house.as_json:
        print_json({"url": url, "model": house.model_name, "plan": plan})
    else:
        typer.echo(f"ready: {url} serves {house.model_name} with plan {plan}")
    if house.control_url is None:
        return
    from api.agent import EngineAgent

    agent = EngineAgent(
        engine=engine,
        control_url=house.control_url,
        api_key=house.control_key,
        public_url=url,
        name=house.engine_name,
    )
    agent.start()
    stack.callback(agent.stop)
