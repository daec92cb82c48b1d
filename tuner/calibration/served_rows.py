"""Published closed-loop runs of serving systems, and the same runs simulated."""

from __future__ import annotations

import csv
import hashlib
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
import numpy.typing as npt

from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Settings
from tuner.backends import Backend, BackendChoice
from tuner.described.node import Node
from tuner.hardware import Precision, parse_hardware
from tuner.spec.errors import TunerError
from tuner.step_model.timer import StepScale
from tuner.work.models import find_quantisation, load_model
from tuner.workload.parse import parse_workload
from tuner.workload.workload import Workload

FloatArray = npt.NDArray[np.float64]
FILE = "end_to_end_dense.csv"
# A run sends this many requests per client, the first ones all at once; see
# :attr:`ServedRow.requests`.
PER_CLIENT = 10
# What the runs of one release end at.
MOST_REQUESTS = {"1.0.0rc3": 2000}
# This many rounds are simulated of more than ``FEW_CLIENTS`` with requests of equal lengths: the
# first burst, the round that still waits behind it, one of those after it, which are alike, and the
# last. With few clients it takes some rounds until they are.
SIMULATED_ROUNDS = 4
FEW_CLIENTS = 32
# More than any row's concurrency: no row names a limit of its own.
MAX_NUM_SEQS = 1024
INFERENCEMAX_VLLM = "0.10.2"


class Tool(StrEnum):
    """Who measured a row, and therefore how clients and server were set.

    ``inferencemax``: rows without a version and with lengths of 1,024 or 8,192. Its public
    scripts say: lengths drawn between 0.8 of the nominal one and all of it, ten requests per
    client; vLLM 0.10.2 with a budget of 8,192 tokens, asynchronous scheduling, and norm and
    rounding fused; TensorRT-LLM with a budget of 16,384 tokens (later revisions: the whole
    context), ten tokens of an answer sent together, and for 1,024/1,024 below TP 8 prompts that
    wait up to 20 steps for others.

    ``fixed``: the others. Lengths are fixed. Nothing public says how the servers were set; a
    budget of one prompt beside the running sequences, and requests that join the step after
    next, fit both systems, all lengths and all degrees.
    """

    INFERENCEMAX = "inferencemax"
    FIXED = "fixed"

    @property
    def shortest(self) -> float:
        """The shortest length over the nominal one."""
        return 0.8 if self is Tool.INFERENCEMAX else 1.0


@dataclass(frozen=True, kw_only=True)
class ServedRow:
    """One measured run: means over its requests. ``precision`` is bf16 where none is stated."""

    backend: str
    version: str
    device: str
    model: str
    precision: str
    input_tokens: int
    output_tokens: int
    concurrency: int
    tp: int
    ttft_s: float
    tpot_s: float

    @property
    def group(self) -> str:
        """What is held out together."""
        return f"{self.device} {self.model} {self.backend}"

    @property
    def shortest_output(self) -> int:
        return int(self.tool.shortest * self.output_tokens)

    @property
    def requests(self) -> int:
        """Of how many requests the means are.

        InferenceMAX's scripts say ten per client. The other tool's times to first token are sums of
        whole nanoseconds, so a mean tells over how many it was taken: its product with that number
        is whole. Of vLLM ten per client make it whole; of TensorRT-LLM 20 per client do, and 2,000
        with 128 clients. (Where 32 or more clients send prompts of 1,024 tokens to the 8B, one of
        them is missing, two of 2,000.)
        """
        if self.tool is Tool.INFERENCEMAX or self.backend == "vllm":
            return PER_CLIENT * self.concurrency
        every = 2 * PER_CLIENT * self.concurrency
        return min(every, MOST_REQUESTS.get(self.version, every))

    @property
    def simulated_rounds(self) -> int:
        """How many rounds stand for all."""
        is_long = self.concurrency > FEW_CLIENTS and self.tool.shortest == 1
        return SIMULATED_ROUNDS if is_long else self.requests // self.concurrency

    @property
    def tool(self) -> Tool:
        return Tool.FIXED if self.version else Tool.INFERENCEMAX

    @property
    def caps(self) -> Caps:
        """The server's limits, as far as they are known; see :class:`Tool`."""
        if self.tool is Tool.FIXED:
            budget = self.input_tokens + self.concurrency
        elif self.backend == "vllm":
            budget = 8192
        else:
            budget = 16_384
        return Caps(max_num_seqs=MAX_NUM_SEQS, max_num_batched_tokens=budget)

    @property
    def choice(self) -> BackendChoice:
        """The system as a command line names it: vLLM by its release, InferenceMAX's with the
        switch that its scripts set."""
        if self.backend != "vllm":
            return BackendChoice(name=self.backend, settings=self._trtllm_settings)
        if self.tool is Tool.FIXED:
            return BackendChoice(name=self.backend, release=self.version)
        # Its checkpoint holds the scales of activations, and the script turns on the pass that
        # fuses all-reduce, norm and rounding.
        settings = (("async_scheduling", "on"), ("kernels.rounds_apart", "off"))
        return BackendChoice(name=self.backend, release=INFERENCEMAX_VLLM, settings=settings)

    @property
    def _trtllm_settings(self) -> tuple[tuple[str, str], ...]:
        """What InferenceMAX's script sets, and what checkpoints ask for."""
        settings = []
        # The publisher's fp8 checkpoint asks for fp8 keys and values, and this system obeys. The
        # other tool's runs of an fp8 model on one device had room for keys and values that in two
        # bytes would not have fitted.
        if self.precision.startswith("fp8"):
            settings.append(("kv_cache_dtype", "fp8"))
        if self.tool is not Tool.INFERENCEMAX:
            return tuple(settings)
        settings.append(("stream_interval", "10"))
        if (self.input_tokens, self.output_tokens) == (1024, 1024) and self.tp < 8:
            settings.append(("batch_wait_timeout_iters", "20"))
            settings.append(("batch_wait_max_tokens_ratio", "0.9"))
        return tuple(settings)

    def workload(self, rounds: int, seed: int) -> Workload:
        """``rounds`` requests per client; lengths as the tool draws them."""
        return parse_workload(self.workload_spec(rounds), seed=seed)

    def workload_spec(self, rounds: int) -> str:
        """The workload as a command line names it."""

        def length(nominal: int) -> str:
            shortest = self.tool.shortest
            return str(nominal) if shortest == 1 else f"uniform:{shortest:g}..1*{nominal}"

        return (
            f"closed:concurrency={self.concurrency},input={length(self.input_tokens)},"
            f"output={length(self.output_tokens)},requests={rounds * self.concurrency}"
        )


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """A row's means as the simulator has them; NaN where the row does not fit the device."""

    ttft_s: float
    tpot_s: float


NOT_SERVED = Simulated(ttft_s=float("nan"), tpot_s=float("nan"))


def read_served_rows(data: Path) -> list[ServedRow]:
    """Every row of ``data/end_to_end_dense.csv``.

    Raises:
        TunerError: no such file, or a run over several pipeline stages.
    """
    path = data / FILE
    if not path.exists():
        raise TunerError(f"{path}: no such file; give the folder that holds {FILE}")
    with path.open() as file:
        return [_row(raw) for raw in csv.DictReader(file)]


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def mean_over_rounds(values: FloatArray, clients: int, requests: int) -> float:
    """The mean over ``requests`` of ``clients``, where f8[known] of fewer rounds may be known: the
    last round but one counts as all that are not known, too. In the first all come at once, some of
    the second wait behind them, and decodes of the last meet ever fewer prompts of others."""
    rounds = values.reshape(-1, clients).mean(axis=1)
    number = requests / clients
    return float((rounds.sum() + (number - len(rounds)) * rounds[-2]) / number)


class RowSimulator:
    """Simulates rows served by one backend each; step times are made once per plan."""

    def __init__(self, backends: dict[str, Backend]) -> None:
        self._backends = backends
        self._nodes: dict[tuple[object, ...], Node] = {}

    def simulate(
        self, row: ServedRow, *, seed: int = 0, step_scale: float | StepScale = 1.0
    ) -> Simulated:
        """The run of ``row``, step times multiplied by ``step_scale``."""
        node, plan = self._node(row), ParallelPlan(tp=row.tp)
        needed = row.input_tokens + row.output_tokens
        if node.memory(plan, caps=row.caps, needed_kv_tokens=needed).reason is not None:
            return NOT_SERVED
        settings = Settings(plan=plan, caps=row.caps)
        workload = row.workload(row.simulated_rounds, seed)
        result = node.simulate(settings, workload, seed=seed, step_scale=step_scale)
        timings = result.measurement.timings
        if any(len(timing.token_s) < row.shortest_output for timing in timings):
            return NOT_SERVED
        ttft_s = np.array([timing.token_s[0] - timing.sent_s for timing in timings])
        tpot_s = np.array(
            [
                (timing.token_s[-1] - timing.token_s[0]) / (len(timing.token_s) - 1)
                for timing in timings
            ]
        )
        return Simulated(
            ttft_s=mean_over_rounds(ttft_s, row.concurrency, row.requests),
            tpot_s=mean_over_rounds(tpot_s, row.concurrency, row.requests),
        )

    def _node(self, row: ServedRow) -> Node:
        key = (row.backend, row.device, row.model, row.precision, row.tp, row.choice)
        if key not in self._nodes:
            hardware = parse_hardware(f"{row.tp}x{row.device}")
            self._nodes[key] = Node(
                hardware=hardware,
                model=load_model(row.model),
                precision=Precision.parse(row.precision),
                backend=self._backends[row.backend].chosen(row.choice, hardware.device),
            )
        return self._nodes[key]


def _precision(raw: dict[str, str]) -> str:
    """As the model's publisher offers it: Qwen3 in fp8 has a scale per block."""
    stated = raw["precision"] or "bf16"
    return find_quantisation(f"{raw['model_path']}-{stated}") or stated


def _row(raw: dict[str, str]) -> ServedRow:
    if float(raw["pp_size"] or 1) != 1:
        raise TunerError(f"row {raw['id']}: pp_size {raw['pp_size']} is not read here, only 1")
    return ServedRow(
        backend=raw["backend"],
        version=raw["backend_version"],
        device=raw["system"].removesuffix("_sxm"),
        model=raw["model_path"].rpartition("/")[2].lower().removesuffix("-instruct"),
        precision=_precision(raw),
        input_tokens=int(float(raw["isl"])),
        output_tokens=int(float(raw["osl"])),
        concurrency=int(float(raw["concurrency"])),
        tp=int(float(raw["tp_size"])),
        ttft_s=float(raw["ttft_ms"]) / 1e3,
        tpot_s=float(raw["tpot_ms"]) / 1e3,
    )
