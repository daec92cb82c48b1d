"""Options of ``gearshift engine serve``, one value per noun."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from api.cli.common import fail
from api.cli.engine_options import (
    MOST_DEVICES,
    MOST_SEQS,
    MOST_TOKENS,
    DeviceOption,
    JsonOption,
    QuantizationOption,
    is_http_url,
    read_count,
    read_len,
)
from api.cli.groups import Described
from api.cli.key_options import CONTROL_KEY_VARIABLE, key_option, read_key_file
from api.cli.limit_options import LimitOptions
from api.cli.listening import Listening
from engine.spec.config import MOST_GRAPH_TOKENS
from engine.spec.settings import Order

if TYPE_CHECKING:
    from engine.engine import Engine
    from engine.server.defaults import SamplingDefaults
    from engine.spec.plan import ParallelPlan
    from engine.spec.settings import Caps
    from tuner.described.node import Node

# The label vLLM gives its first engine.
DEFAULT_ENGINE_NAME = "0"
DEFAULT_SEQS = 64
DEFAULT_TOKENS = 2048
DEFAULT_UTILIZATION = 0.9


COUNT = "N|auto"


@dataclass(frozen=True, kw_only=True)
class CapOptions:
    """What a step and the queue may hold, and the order in which waiting requests are taken."""

    max_num_seqs: Annotated[
        str,
        typer.Option(
            metavar=COUNT,
            help="Sequences per step; auto: as described hardware's backend, or ours on CUDA.",
        ),
    ] = str(DEFAULT_SEQS)
    max_num_batched_tokens: Annotated[
        str, typer.Option(metavar=COUNT, help="Tokens per step, as in 8192 or 8k; auto: likewise.")
    ] = str(DEFAULT_TOKENS)
    max_step_ms: Annotated[
        float | None, typer.Option(help="Chunks are sized so that a mixed step fits this.")
    ] = None
    max_queue: Annotated[
        int | None, typer.Option(min=0, help="Waiting requests beyond which callers get 429.")
    ] = None
    scheduling_policy: Annotated[Order, typer.Option(help="Which waiting request comes first.")] = (
        Order.FCFS
    )

    def caps(self, device: str, node: Node | None) -> Caps:
        """The same, as the engine takes it; ends on a count that is none."""
        from engine.spec.settings import Caps
        from tuner.backends import load_backend
        from tuner.described.parse import OWN_BACKEND

        usual = Caps(max_num_seqs=DEFAULT_SEQS, max_num_batched_tokens=DEFAULT_TOKENS)
        if node is not None:
            usual = node.backend.default_caps
        elif device != "cpu":
            usual = load_backend(OWN_BACKEND).default_caps
        seqs = read_count("--max-num-seqs", self.max_num_seqs, MOST_SEQS)
        tokens = read_count("--max-num-batched-tokens", self.max_num_batched_tokens, MOST_TOKENS)
        return Caps(
            max_num_seqs=usual.max_num_seqs if seqs is None else seqs,
            max_num_batched_tokens=usual.max_num_batched_tokens if tokens is None else tokens,
            max_step_ms=self.max_step_ms,
            max_queue=self.max_queue,
        )


@dataclass(frozen=True, kw_only=True)
class RankOptions:
    """The ranks: what they run on, what they hold, and how they work."""

    device: DeviceOption = "cpu"
    quantization: QuantizationOption = None
    max_devices: Annotated[
        int | None, typer.Option(min=1, max=MOST_DEVICES, help="Devices a reshape may use.")
    ] = None
    kv_cache_mib: Annotated[int, typer.Option(min=1, max=2**30, help="KV cache per rank.")] = 256
    link: Annotated[
        str | None,
        typer.Option(help="Emulated link between CPU ranks, as in latency_us=20,gbps=100."),
    ] = None
    gpu_memory_utilization: Annotated[
        float | None,
        typer.Option(
            min=0.01, max=1.0, help="Share of a CUDA device for weights and KV; by default 0.9."
        ),
    ] = None
    num_gpu_blocks_override: Annotated[
        int | None, typer.Option(min=1, max=2**30, help="KV blocks per rank, however much that is.")
    ] = None
    overlap: Annotated[
        bool,
        typer.Option(
            "--overlap/--no-overlap",
            "--async-scheduling/--no-async-scheduling",
            help="Schedule a step while the one before runs.",
        ),
    ] = True
    no_parallel_sampling: Annotated[
        bool, typer.Option("--no-parallel-sampling", help="Every rank samples all rows.")
    ] = False
    prefix_cache: Annotated[
        bool,
        typer.Option(
            "--enable-prefix-caching/--no-enable-prefix-caching",
            " /--no-prefix-cache",
            help="Compute equal beginnings of prompts once.",
        ),
    ] = True
    executor: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="What runs the steps, where an installed package brings that."
        ),
    ] = None
    spare_ranks: Annotated[
        int,
        typer.Option(min=0, max=64, help="Warm processes that wait to take a dead rank's place."),
    ] = 0

    threads_per_rank: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1024,
            help="Threads of each CPU rank; by default OMP_NUM_THREADS, else cores over ranks.",
        ),
    ] = None
    max_graph_tokens: Annotated[
        int,
        typer.Option(
            min=0,
            max=MOST_GRAPH_TOKENS,
            help="On CUDA, steps of up to this many tokens run as CUDA graphs; 0: none do.",
        ),
    ] = 512

    def __post_init__(self) -> None:
        """End where a share is named of memory that has no devices."""
        if self.gpu_memory_utilization is not None and self.device == "cpu":
            fail(
                "--gpu-memory-utilization: a share of CUDA devices; add --device cuda, or name "
                "--kv-cache-mib"
            )

    @property
    def memory_utilization(self) -> float:
        """The share of a CUDA device that weights and KV may take."""
        share = self.gpu_memory_utilization
        return DEFAULT_UTILIZATION if share is None else share


@dataclass(frozen=True, kw_only=True)
class Pacing(Described):
    """Whether steps are computed here, or take the time they would on described hardware."""

    paced: Annotated[
        str | None,
        typer.Option(
            metavar="HARDWARE",
            help="No ranks: steps take the time they would on this hardware, as in 8xh200.",
        ),
    ] = None
    backend: Annotated[
        str | None,
        typer.Option(
            help="With --paced: the serving system whose host times and defaults apply: vllm, "
            "arctic, ...; by default gearshift, as this engine is."
        ),
    ] = None
    paced_start_s: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=86_400,
            help="With --paced: seconds that ranks take to start for a change of plan; by default "
            "as estimated for the hardware.",
        ),
    ] = None
    max_model_len: Annotated[
        int | None,
        typer.Option(
            parser=read_len,
            metavar=COUNT,
            help="Context in tokens, as in 32768 or 32k; auto, and by default: the model's.",
        ),
    ] = None

    def find_node(self, model: Path, plan: ParallelPlan) -> Node | None:
        """The node that paces the steps, None where ranks compute them. Ends on a mistake."""
        if self.paced is None:
            self.refuse_backend("--paced")
            return None
        from tuner.described.parse import backend_of, check_served

        named = backend_of(self.backend, is_described=False)
        served = replace(self, backend=named)
        node = served.node(str(model), self.paced)
        check_served(node, plan)
        return node


@dataclass(frozen=True, kw_only=True)
class Names:
    """What the model and the engine are called."""

    served_model_name: Annotated[
        str | None, typer.Option(help="Name in the API; by default the folder's.")
    ] = None
    name: Annotated[
        str | None,
        typer.Option(
            help="This engine's identity in metrics and, over restarts, at the control plane; "
            "there by default MODEL@HOST:PORT. The name of another live engine is refused there."
        ),
    ] = None

    def model_name(self, folder: Path) -> str:
        """What callers name the model in ``folder``."""
        return self.served_model_name or folder.resolve().name

    @property
    def engine_label(self) -> str:
        """What metrics call the engine."""
        return self.name or DEFAULT_ENGINE_NAME


@dataclass(frozen=True, kw_only=True)
class ControlPlane:
    """The control plane to register with, if any."""

    control: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Control plane to register with."),
    ] = None
    control_key: Annotated[
        str | None,
        key_option(
            CONTROL_KEY_VARIABLE,
            "Its key; give it by the variable, since options show in the list of processes.",
        ),
    ] = None
    control_key_file: Annotated[
        Path | None, typer.Option(help="File that holds the key, before any other.")
    ] = None

    def __post_init__(self) -> None:
        """End where nothing could ever be reached; a service that is away may come back."""
        if self.control is not None and not is_http_url(self.control):
            fail(f"--control {self.control}: write it as in http://127.0.0.1:8700")
        _ = self.key

    @cached_property
    def key(self) -> str | None:
        """The key, wherever it stands. Ends where its file has none."""
        if self.control_key_file is None:
            return self.control_key
        return read_key_file("--control-key-file", self.control_key_file)

    def join(self, engine: Engine, stack: ExitStack, *, url: str, name: str | None) -> None:
        """Register the engine that serves at ``url``, until ``stack`` ends."""
        if self.control is None:
            return
        from api.agent.agent import EngineAgent
        from tuner.spec.machine import data_dir

        agent = EngineAgent(
            engine=engine,
            control_url=self.control,
            api_key=self.key,
            public_url=url,
            name=name,
            credential_dir=data_dir() / "engines",
        )
        agent.start()
        stack.callback(agent.stop)


@dataclass(frozen=True, kw_only=True)
class House:
    """Where the engine is served, under which names and keys, and how it ends."""

    listening: Listening
    names: Names
    control: ControlPlane
    bounds: LimitOptions
    drain_s: Annotated[
        int,
        typer.Option(
            min=0, max=86_400, help="At the end, seconds for requests in progress to finish."
        ),
    ] = 30
    frontends: Annotated[
        int,
        typer.Option(
            "--frontends",
            "--api-server-count",
            min=0,
            max=1,
            help="Processes for HTTP and text, beside the one that steps; 0: all in one process.",
        ),
    ] = 1
    generation_config: Annotated[
        str,
        typer.Option(
            metavar="auto|vllm|PATH",
            help="Sampling defaults of requests: the model's generation_config.json (auto), none "
            "(vllm), or those of another such file or its folder.",
        ),
    ] = "auto"
    log_requests: Annotated[
        bool,
        typer.Option(
            "--enable-log-requests/--no-enable-log-requests",
            help="Log one line per request with its X-Request-Id; errors are logged in any case.",
        ),
    ] = False
    as_json: JsonOption = False

    def read_defaults(self, model: Path) -> SamplingDefaults:
        """How requests are sampled that do not say. Ends on a mistake."""
        from engine.server.defaults import SamplingDefaults

        return SamplingDefaults.read(self.generation_config, model)
