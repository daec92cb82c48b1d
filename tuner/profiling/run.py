"""Measures this machine: operators, collectives, pieces of passes, and a short one-rank run."""

from __future__ import annotations

import queue
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from engine.engine import Engine
from engine.spec.config import EngineConfig, ExecutorKind, LinkEmulation
from engine.spec.errors import RankError
from engine.spec.model import DType, ModelConfig
from engine.spec.processor import num_cores
from engine.spec.quantisation import WeightFormat
from engine.spec.request import Request, RequestOutput, SamplingParams
from engine.spec.settings import Caps, Settings
from engine.spec.steps import StepSample
from tuner.load.stoppable import until_stopped
from tuner.profiling.budget import Budget
from tuner.profiling.host_work import HostWork, HostWorkMeter
from tuner.profiling.messages import OperatorReport
from tuner.profiling.operators import measuring_ranks, profile_operators
from tuner.profiling.pieces import profile_pieces
from tuner.profiling.profile import Profile, Took, merged, weights_of
from tuner.spec.cancel import LOOK_EVERY_S, NEVER, Cancellation
from tuner.spec.machine import this_machine
from tuner.work.counts import model_sizes

OnEvent = Callable[[str], None]
# How the seconds of a round are shared.
OPERATOR_SHARE, PIECE_SHARE, SERVING_SHARE = 0.3, 0.5, 0.2
# Requests at once in the waves of the serving run.
WAVES = (1, 4, 12, 32)


@dataclass(frozen=True, kw_only=True)
class ProfileSpec:
    """What to profile. ``seconds`` is about how long all of it takes, starts included.

    Processes start and load weights for every kind of plan, and everything is measured a least
    number of times; with less than that needs, it takes as long as that needs (``Took.fixed_s``).
    ``num_ranks`` never exceeds the machine's cores over ``threads_per_rank`` (or CUDA devices),
    because the times of ranks that share a core would hold their waiting. The seconds are shared by
    ``rounds``, each of which starts and measures everything. Several rounds help where the speed of
    the machine drifts, as a virtual one's does. ``quantisation`` is what the layers of a plain
    checkpoint are quantised to as they load.
    """

    model_dir: Path
    num_ranks: int = 2
    dtype: DType = DType.FLOAT32
    device: str = "cpu"
    link: LinkEmulation | None = None
    seconds: float = 30.0
    max_tokens: int = 1024
    max_context: int = 2048
    seed: int = 0
    rounds: int = 1
    threads_per_rank: int = 1
    quantisation: WeightFormat | None = None


def run_profile(
    spec: ProfileSpec, *, on_event: OnEvent = lambda _: None, cancel: Cancellation = NEVER
) -> Profile:
    """Measure everything ``spec`` asks for; ``cancel`` is asked on the way.

    Raises:
        CancelledError: by ``cancel``; no rank is left then.
        TunerError: a measuring rank failed.
        EngineError: the checkpoint is at fault, or a rank of the engine failed.
    """
    found = []
    budget = Budget(spec.seconds)
    for number in range(spec.rounds):
        if spec.rounds > 1:
            on_event(f"round {number + 1} of {spec.rounds}")
        share = budget.inner(1 / (spec.rounds - number))
        of_round = replace(spec, seed=spec.seed + number)
        found.append(_Round(of_round, share, on_event, cancel).run())
    return merged(found)


class _Round:
    """Everything measured once, within ``budget``."""

    def __init__(
        self, spec: ProfileSpec, budget: Budget, on_event: OnEvent, cancel: Cancellation
    ) -> None:
        self._spec, self._budget, self._on_event, self._cancel = spec, budget, on_event, cancel
        self._model = ModelConfig.from_dir(spec.model_dir)
        self._num_ranks = min(spec.num_ranks, max_active_ranks(spec.device, spec.threads_per_rank))
        self._max_context = min(spec.max_context, self._model.max_positions)
        self._config = EngineConfig(
            model_dir=spec.model_dir,
            dtype=spec.dtype,
            device=spec.device,
            link=spec.link,
            executor=ExecutorKind.PROCESS,
            kv_cache_bytes=128 * 2**20,
            threads_per_rank=spec.threads_per_rank,
            quantisation=spec.quantisation,
        )

    def run(self) -> Profile:
        spec, budget = self._spec, self._budget
        begun_s, asked_s = time.perf_counter(), budget.left_s
        weights = weights_of(self._model, spec.quantisation, spec.device)
        reports = self._operators()
        self._on_event("passes of a model cut to a few layers")
        of_pieces = budget.inner(PIECE_SHARE / (PIECE_SHARE + SERVING_SHARE))
        pieces = profile_pieces(
            self._config,
            num_ranks=self._num_ranks,
            max_tokens=spec.max_tokens,
            max_context=self._max_context,
            budget=of_pieces,
            cancel=self._cancel,
        )
        self._on_event("a short serving run on one rank")
        of_serving = budget.inner(1.0)
        samples, host_work = serve_samples(
            self._config, self._model, seed=spec.seed, budget=of_serving, cancel=self._cancel
        )
        return Profile(
            fingerprint=this_machine(spec.device, threads_per_rank=spec.threads_per_rank),
            model=model_sizes(self._model),
            dtype=spec.dtype.value,
            link=asdict(spec.link) if spec.link else None,
            gemms=tuple(row for report in reports for row in report.gemms),
            attentions=tuple(row for report in reports for row in report.attentions),
            elementwise=tuple(row for report in reports for row in report.elementwise),
            collectives=tuple(row for report in reports for row in report.collectives),
            pieces=tuple(pieces),
            samples=samples,
            host_work=host_work,
            took=Took(
                asked_s=asked_s,
                total_s=time.perf_counter() - begun_s,
                fixed_s=budget.fixed_s + of_pieces.fixed_s + of_serving.fixed_s,
            ),
            weights=weights,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def _operators(self) -> list[OperatorReport]:
        """Times of operators with 1, 2, ... ranks at work at once."""
        most = self._num_ranks
        sizes = (self._model.num_heads, self._model.ffn_size)
        degrees = [n for n in range(1, most + 1) if all(size % n == 0 for size in sizes)]
        reports: list[OperatorReport] = []
        with measuring_ranks(most) as ranks:
            for active in range(most, 0, -1):  # all of them first: then each of them has started
                kinds = "operators" if active == 1 else "operators and collectives"
                self._on_event(f"{kinds} with {active} of {most} ranks at work")
                to_come = OPERATOR_SHARE * active / most + PIECE_SHARE + SERVING_SHARE
                with self._budget.part(OPERATOR_SHARE / most / to_come) as seconds:
                    report = profile_operators(
                        ranks,
                        self._config,
                        num_ranks=active,
                        degrees=degrees,
                        max_tokens=self._spec.max_tokens,
                        max_context=self._max_context,
                        seconds=seconds,
                        cancel=self._cancel,
                    )
                reports.insert(0, report)
        return reports


def max_active_ranks(device: str, threads_per_rank: int = 1) -> int:
    """Ranks that have a core for each thread (or a device each); at least one."""
    if not device.startswith("cuda"):
        return max(1, num_cores() // threads_per_rank)
    import torch

    return torch.cuda.device_count()


def serve_samples(
    config: EngineConfig,
    model: ModelConfig,
    *,
    seed: int,
    budget: Budget,
    cancel: Cancellation = NEVER,
) -> tuple[tuple[StepSample, ...], tuple[HostWork, ...]]:
    """A live engine on one rank under waves of requests of many lengths, at least one of each
    size: its step samples, and what each wave took beside its steps."""
    served = replace(
        config,
        settings=Settings(caps=Caps(max_num_seqs=32, max_num_batched_tokens=512)),
        max_model_len=min(1024, model.max_positions),
    )
    rng = np.random.default_rng(seed)
    samples: list[StepSample] = []
    work: list[HostWork] = []
    with ExitStack() as stack:
        with budget.start():
            engine = stack.enter_context(closing(Engine(served)))
            _start(engine, cancel)
            meter = HostWorkMeter()
            run_wave(
                engine, rng, num_requests=2, wave=0, cancel=cancel
            )  # warms caches and branch history
            engine.drain_samples()
        wave = 1
        while budget.left_s > 0 or wave <= len(WAVES):
            meter.begin()
            run_wave(engine, rng, num_requests=WAVES[wave % len(WAVES)], wave=wave, cancel=cancel)
            new = engine.drain_samples()
            num_rows = sum(sample.shape.num_seqs for sample in new)
            work.append(meter.end(num_steps=len(new), num_rows=num_rows))
            samples += new
            wave += 1
    return tuple(samples), tuple(work)


def _start(engine: Engine, cancel: Cancellation) -> None:
    try:
        until_stopped(engine, engine.start, lambda: cancel.is_over)
    except RankError:
        cancel.check()
        raise


def run_wave(
    engine: Engine,
    rng: np.random.Generator,
    *,
    num_requests: int,
    wave: int,
    cancel: Cancellation = NEVER,
) -> None:
    """Submit requests at once and wait for all of them."""
    longest = min(400, engine.max_model_len // 2)
    outputs: queue.Queue[RequestOutput] = queue.Queue()

    def keep_last(output: RequestOutput) -> None:
        # Waking the caller for every token would cost the loop more than the token.
        if output.is_finished:
            outputs.put(output)

    for number in range(num_requests):
        length = int(np.exp(rng.uniform(np.log(8), np.log(longest))))
        request = Request(
            request_id=f"{wave}-{number}",
            prompt_ids=tuple(rng.integers(3, engine.model.vocab_size, length).tolist()),
            sampling=SamplingParams(max_tokens=int(rng.integers(8, 48)), ignore_eos=True),
        )
        engine.submit(request, keep_last)
    left = num_requests
    while left:
        cancel.check()
        with suppress(queue.Empty):
            outputs.get(timeout=LOOK_EVERY_S)
            left -= 1


@contextmanager
def reference_model() -> Iterator[Path]:
    """A temporary random checkpoint, for profiling without a model of one's own."""
    from engine.models.create import create_model

    with tempfile.TemporaryDirectory(prefix="gearshift-model-") as folder:
        target = Path(folder) / "small"
        create_model(target, preset="small", seed=0)
        yield target
