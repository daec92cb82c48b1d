"""``gearshift engine serve``: one engine behind an OpenAI-compatible server."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from api.cli.answers import ServedAnswer, why_not_here
from api.cli.common import fail, log, print_json, print_line
from api.cli.engine_groups import CapOptions, House, Pacing, RankOptions
from api.cli.engine_options import check_device, read_dtype, read_link
from api.cli.grouped import grouped
from api.cli.limit_options import room_for
from api.cli.listening import bind
from api.cli.served_plan import ServedModel, ServedPlan
from api.cli.vllm_config import ConfigOption
from api.cli.vllm_flags import known_words as known_words

if TYPE_CHECKING:
    from api.documents.answer import Answer
    from engine.engine import Engine
    from engine.fleet import TimerFactory
    from engine.server.defaults import SamplingDefaults
    from engine.spec.config import EngineConfig
    from engine.spec.limits import RequestLimits
    from tuner.described.node import Node

MIB = 2**20


@grouped(
    help_order="model_tag model source choice plan port host config mode mode_table max_num_seqs "
    "max_num_batched_tokens max_queue max_model_len dtype quantization device max_devices "
    "kv_cache_mib gpu_memory_utilization block_size link overlap no_parallel_sampling "
    "prefix_cache spare_ranks threads_per_rank max_graph_tokens paced backend backend_set "
    "paced_start_s served_model_name name api_key knob_key"
)
def serve(
    ctx: typer.Context,
    model: ServedModel,
    plan: ServedPlan,
    caps: CapOptions,
    ranks: RankOptions,
    pacing: Pacing,
    house: House,
    answer: ServedAnswer,
    config: ConfigOption = None,
) -> None:
    """Serve a model until SIGTERM or Ctrl-C; one line on stdout tells the address when ready.

    Takes the flags of vllm serve, and its --config, where they mean something here.
    """
    if config is not None:
        log(f"options of {config}; the command line wins")
    from tuner.described.parse import check_rungs

    found = answer.find(ctx)
    folder, plan = model.folder(ctx), plan.in_one_word(ctx)
    if found is not None:
        pacing = _as_answered(found, folder, pacing)
    node = pacing.find_node(folder, plan.spec.plan)
    if node is not None and ranks.quantization is not None:
        fail(
            f"--quantization {ranks.quantization}: no weights are loaded with --paced; name the "
            "format of the rehearsed ones, as in --dtype fp8"
        )
    if node is not None and ranks.executor is not None:
        fail(f"--executor {ranks.executor}: with --paced no steps run; leave out one of them")
    wanted = _config(folder, plan, caps, ranks, pacing, node)
    if node is not None:
        check_rungs(node, wanted.settings)
    if found is not None and wanted.settings != found.settings:
        log(f"served as {wanted.settings}; {answer.source} says {found.settings}")
    if node is None:
        _run(wanted, None, house)
    else:
        _run(*_pace(wanted, node, pacing.paced_start_s), house)


def _as_answered(found: Answer, folder: Path, pacing: Pacing) -> Pacing:
    """Paced as the answer's serving system, where nothing else is said. Ends where this machine
    cannot serve the answer, with the way out."""
    from tuner.described.parse import has_checkpoint

    if not has_checkpoint(str(folder)):
        fail(f"{folder}: no model folder here; name the checkpoint with --model DIR")
    if pacing.paced is None:
        if (reason := why_not_here(found)) is not None:
            fail(f"--from: {reason}")
        return pacing
    backend = None if found.place is None else found.place.backend
    return pacing if pacing.backend is not None else replace(pacing, backend=backend)


def _config(
    model: Path,
    plan: ServedPlan,
    caps: CapOptions,
    ranks: RankOptions,
    pacing: Pacing,
    node: Node | None,
) -> EngineConfig:
    from engine.spec.config import EngineConfig, ExecutorKind
    from engine.spec.extensions import ExtensionPoint, get_extension

    if ranks.executor is not None:  # a wrong name is told before anything starts
        get_extension(ExtensionPoint.EXECUTORS, ranks.executor)
    return EngineConfig(
        model_dir=model,
        settings=replace(
            plan.settings(caps.caps(ranks.device, node)), order=caps.scheduling_policy
        ),
        dtype=read_dtype(pacing.dtype, model) if node is None else node.precision.dtype,
        quantisation=ranks.quantization if node is None else None,
        device=check_device(ranks.device) if node is None else "cpu",
        kv_cache_bytes=ranks.kv_cache_mib * MIB,
        block_size=pacing.block_size,
        max_model_len=pacing.max_model_len,
        max_devices=ranks.max_devices,
        link=read_link(ranks.link),
        num_kv_blocks=ranks.num_gpu_blocks_override,
        memory_utilization=ranks.memory_utilization,
        overlap=ranks.overlap,
        parallel_sampling=not ranks.no_parallel_sampling,
        prefix_cache=ranks.prefix_cache,
        spare_ranks=ranks.spare_ranks,
        threads_per_rank=ranks.threads_per_rank,
        max_graph_tokens=ranks.max_graph_tokens,
        mode_table_path=plan.mode_table,
        # One rank, too, in a process of its own: it computes beside the server, not in its turns.
        executor=ExecutorKind.PROCESS if ranks.executor is None else ExecutorKind.EXTENSION,
        executor_name=ranks.executor,
    )


def _pace(
    config: EngineConfig, node: Node, start_s: float | None
) -> tuple[EngineConfig, TimerFactory]:
    """The same engine on hardware that is not here: its memory, its devices, its step times."""
    from tuner.described.parse import paced_config

    there = replace(paced_config(config, node), max_devices=node.hardware.count)
    if start_s is not None:
        there = replace(there, start_s_of=lambda _plan: start_s)
    return there, node.timer


def _run(config: EngineConfig, timer_factory: TimerFactory | None, house: House) -> None:
    from engine.spec.model import ModelConfig
    from engine.text.ends import read_end_tokens

    if not (config.model_dir / "tokenizer.json").exists():
        fail(
            f"{config.model_dir}: no tokenizer.json, which a server needs; to rehearse, make a "
            "folder by gearshift model create DIR --preset NAME"
        )
    defaults = house.read_defaults(config.model_dir)
    limits = room_for(house.bounds)
    ends = read_end_tokens(config.model_dir, ModelConfig.from_dir(config.model_dir))
    with ExitStack() as stack:
        listener = stack.enter_context(bind(house.listening.host, house.listening.port))
        for warning in (*config.settings.warnings, house.listening.warning(listener)):
            if warning:
                log(f"warning: {warning}")
        for notice in (defaults.notice, ends.notice):
            if notice:
                log(notice)
        serving = _Serving(
            config=config,
            timer_factory=timer_factory,
            house=house,
            defaults=defaults,
            limits=limits,
            listener=listener,
            stack=stack,
        )
        if house.frontends:
            serving.with_front()
        else:
            serving.in_process()


@dataclass(frozen=True, kw_only=True)
class _Serving:
    """One engine behind one listener, until it is told to end; ``stack`` then ends its parts."""

    config: EngineConfig
    timer_factory: TimerFactory | None
    house: House
    defaults: SamplingDefaults
    limits: RequestLimits
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
            model_name=self._model_name,
            engine_name=self.house.names.engine_label,
            keys=self.house.listening.keys(self.listener),
            drain_s=self.house.drain_s,
            model=engine.model,
            envelope=engine.envelope,
            inventory=engine.inventory,
            paced_as=engine.paced_as,
            defaults=self.defaults,
            limits=self.limits,
            logs_requests=self.house.log_requests,
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
        from engine.server.app import create_server
        from engine.server.front.serving import announce_and_run
        from engine.server.traces import ENGINE_SERVICE, find_traces
        from engine.text.tokenizer import Tokenizer

        traces = find_traces(ENGINE_SERVICE, instance=self.house.names.engine_label)
        if traces is not None:
            self.stack.callback(traces.close)
        tokenizer = Tokenizer.from_dir(self.config.model_dir)
        engine = self.stack.enter_context(
            Engine(self.config, tokenizer=tokenizer, timer_factory=self.timer_factory)
        )
        app = create_server(
            engine,
            tokenizer,
            model_name=self._model_name,
            keys=self.house.listening.keys(self.listener),
            engine_name=self.house.names.engine_label,
            defaults=self.defaults,
            limits=self.limits,
            logs_requests=self.house.log_requests,
            traces=traces,
        )
        announce_and_run(
            app,
            self.listener,
            limits=self.limits,
            drain_s=self.house.drain_s,
            on_ready=lambda: self._ready(engine),
        )

    @property
    def _model_name(self) -> str:
        return self.house.names.model_name(self.config.model_dir)

    def _ready(self, engine: Engine) -> None:
        """Say where the server is, and join the control plane if there is one."""
        house, name, plan = self.house, self._model_name, str(engine.settings.plan)
        if engine.executor_infos and (computes_by := engine.executor_infos[0].computes_by):
            log(f"products: {computes_by}")
        url = house.listening.url(self.listener)
        if house.as_json:
            paced = {} if engine.paced_as is None else {"paced": engine.paced_as}
            print_json({"url": url, "model": name, "plan": plan, **paced})
        elif engine.paced_as is None:
            print_line(f"ready: {url} serves {name} with plan {plan}")
        else:
            print_line(
                f"ready: {url} serves {name} with plan {plan}, paced as {engine.paced_as}: no "
                "model is run, and its answers mean nothing"
            )
        house.control.join(engine, self.stack, url=url, name=house.names.name)
