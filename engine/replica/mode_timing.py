"""Times the modes on ranks that have just started, and keeps the table for the next start."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from engine.executors.protocol import Executor, ExecutorInfo
from engine.modes.table import SCHEMA, ModeTable, filled, find_table, store_table
from engine.replica.devices import is_cuda
from engine.scheduler.step import step_shape
from engine.spec.config import Collectives, EngineConfig, ExecutorKind, LinkEmulation
from engine.spec.model import ModelConfig
from engine.spec.modes import Mode
from engine.spec.plan import ParallelPlan
from engine.spec.processor import num_cores, processor_name
from engine.spec.steps import Int32Array, SlotStart, StepPlan

# Raise this when the timed steps or the way of timing change: older tables are then remeasured.
METHOD = 3
BUDGET_S = 10.0
# Rounds of all modes at each size; the first one only warms up. After the least number, rounds go
# on until they have taken SIZE_S or the most is reached.
MIN_ROUNDS = 4
MAX_ROUNDS = 24
SIZE_S = 0.3
CHUNK_TOKENS = 256


def mode_table_for(
    executor: Executor,
    info: ExecutorInfo,
    config: EngineConfig,
    model: ModelConfig,
    plan: ParallelPlan,
    *,
    check: Callable[[], None] = lambda: None,
) -> ModeTable:
    """The table of ``plan`` on these ranks: the stored one of their fingerprint, else timed now.

    ``executor`` has just started and runs nothing; a new table is stored if ``config`` says where.
    ``check`` is called between two steps, and may raise.

    Raises:
        EngineError: a stored file that is no table, or a folder that cannot be written to.
        RankError: a rank failed while it was timed.
    """
    envelope = config.start_envelope
    longest = min(
        model.context_tokens(config.max_model_len), info.num_kv_blocks * config.block_size
    )
    max_tokens = min(envelope.max_num_batched_tokens, envelope.max_num_seqs * longest)
    steps = SyntheticSteps(
        max_num_seqs=envelope.max_num_seqs,
        longest=longest,
        block_size=config.block_size,
        num_kv_blocks=info.num_kv_blocks,
        vocab_size=model.vocab_size,
    )
    stopwatch = _Stopwatch(executor, check)
    # Only their step times, which never vary, tell which hardware paced ranks imitate.
    pace = [] if executor.needs_inputs else _time_ends(stopwatch, steps, plan)
    device = device_name(config)
    fingerprint = mode_fingerprint(config, model, plan, device=device, pace=pace)
    path = _table_path(config, fingerprint)
    stored = find_table(path, fingerprint) if path else None
    if stored is not None:
        return stored
    table = time_modes(
        executor,
        plan=plan,
        sizes=padded_sizes(max_tokens, plan),
        steps=steps,
        max_tokens=max_tokens,
        fingerprint=fingerprint,
        device=device,
        check=check,
    )
    if path:
        store_table(table, path)
    return table


def mode_fingerprint(
    config: EngineConfig,
    model: ModelConfig,
    plan: ParallelPlan,
    *,
    device: str,
    pace: Sequence[float] = (),
) -> str:
    """What step times depend on, as 16 hexadecimal digits."""
    facts = {
        "schema": SCHEMA,
        "method": METHOD,
        "model": asdict(model),
        "plan": asdict(plan),
        "dtype": config.dtype,
        "device": device,
        "pace": list(pace),
        "threads_per_rank": config.threads_per_rank,
        "link": asdict(config.link or LinkEmulation()),
        "collectives": _backend(config),
        "block_size": config.block_size,
        "parallel_sampling": config.parallel_sampling,
        "most_tokens": config.start_envelope.max_num_batched_tokens,
        "most_seqs": config.start_envelope.max_num_seqs,
        "max_graph_tokens": config.max_graph_tokens if is_cuda(config) else 0,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def device_name(config: EngineConfig) -> str:
    """The kind of device steps run on, in words."""
    if config.executor is ExecutorKind.SIMULATED:
        return "simulated"
    if config.executor is ExecutorKind.EXTENSION:
        return f"{config.device} by {config.executor_name}"
    if not is_cuda(config):
        return f"cpu {processor_name()} x{num_cores()}"
    import torch

    return str(torch.cuda.get_device_name(config.device))


def padded_sizes(max_tokens: int, plan: ParallelPlan) -> tuple[int, ...]:
    """Powers of two and one between each pair, as multiples of SP, up to a full step's tokens."""
    powers = [2**i for i in range(max_tokens.bit_length())]
    wanted = [*powers, *(3 * power // 2 for power in powers), max_tokens]
    padded = {-(-size // plan.sp) * plan.sp for size in wanted if size <= max_tokens}
    return tuple(sorted(padded))


def time_modes(
    executor: Executor,
    *,
    plan: ParallelPlan,
    sizes: tuple[int, ...],
    steps: SyntheticSteps,
    max_tokens: int,
    fingerprint: str,
    device: str,
    check: Callable[[], None] = lambda: None,
) -> ModeTable:
    """Run steps of ``sizes`` in every mode, every fourth size first, and take the quickest.

    A size that may take longer than ``BUDGET_S`` leaves is not timed: its times follow from its
    neighbours'. Two sizes always are. The steps leave nothing behind: requests start their slots
    anew, and write a KV block before they read it.
    """
    stopwatch = _Stopwatch(executor, check)
    times: dict[int, dict[Mode, float]] = {}
    spent_s: dict[int, float] = {}
    for size in _coarse_first(sizes):
        if len(times) >= 2 and stopwatch.total_s + _most_s(size, spent_s) > BUDGET_S:
            continue
        begun_s = stopwatch.total_s
        times[size] = _time_size(stopwatch, steps, plan, min(size, max_tokens))
        spent_s[size] = stopwatch.total_s - begun_s
    return ModeTable(
        sizes=sizes,
        columns={
            mode: filled({size: found[mode] for size, found in times.items()}, sizes)
            for mode in plan.modes
        },
        is_timed=tuple(size in times for size in sizes),
        fingerprint=fingerprint,
        plan=str(plan),
        device=device,
    )


def _coarse_first(sizes: Sequence[int]) -> list[int]:
    """Every fourth size, then every second, then all others: a short time shows the whole range."""
    return list(dict.fromkeys(size for stride in (4, 2, 1) for size in sizes[::stride]))


def _most_s(size: int, spent_s: Mapping[int, float]) -> float:
    """Seconds that ``size`` takes at most, from what smaller ones took: none grows faster than its
    tokens.
    """
    nearest = max(known for known in spent_s if known < size)
    return spent_s[nearest] * size / nearest


def _time_size(
    stopwatch: _Stopwatch, steps: SyntheticSteps, plan: ParallelPlan, num_tokens: int
) -> dict[Mode, float]:
    """Least seconds of each mode. The modes take turns, so that a slow moment hits all.

    A disturbance only adds time: on a busy machine a median tells more about other programs than
    about the mode.
    """
    found: dict[Mode, list[float]] = {mode: [] for mode in plan.modes}
    begun_s, num_steps = stopwatch.total_s, 0
    for number in range(1, stopwatch.max_rounds + 1):
        for mode in plan.modes:
            step_id = stopwatch.next_step_id
            step = steps.build(num_tokens, mode, step_id=step_id, num_before=num_steps)
            found[mode].append(stopwatch.time(step))
            num_steps += 1
        if number >= MIN_ROUNDS and stopwatch.total_s - begun_s > SIZE_S:
            break
    return {mode: min(seconds[1:] or seconds) for mode, seconds in found.items()}


def _time_ends(stopwatch: _Stopwatch, steps: SyntheticSteps, plan: ParallelPlan) -> list[float]:
    """Seconds of each mode's smallest decode step and of its largest."""
    ends = [(size, mode) for size in (1, steps.max_num_seqs) for mode in plan.modes]
    return [
        stopwatch.time(steps.build(size, mode, step_id=stopwatch.next_step_id, num_before=0))
        for size, mode in ends
    ]


class _Stopwatch:
    """Runs single steps on idle ranks. ``total_s`` is all the time it has spent.

    ``max_rounds`` is how many steps of each mode and size are worth timing: real ranks warm up and
    vary, paced ones do neither.
    """

    def __init__(self, executor: Executor, check: Callable[[], None]) -> None:
        self._check = check
        self.next_step_id = 0
        self.max_rounds = MAX_ROUNDS if executor.needs_inputs else 1
        self.total_s = 0.0
        self._executor = executor

    def time(self, step: StepPlan) -> float:
        """Seconds of one step, from its submission to its result.

        Paced ranks report the time of the step themselves: their clock need not be ours.
        """
        self._check()
        self.next_step_id += 1
        begun_s = time.perf_counter()
        self._executor.submit(step)
        result = self._executor.collect()
        passed_s = time.perf_counter() - begun_s
        paced_s = result.forward_s + result.communication_s
        self.total_s += max(passed_s, paced_s)
        return max(passed_s if self._executor.needs_inputs else 0.0, paced_s, 1e-9)


@dataclass(frozen=True, kw_only=True)
class SyntheticSteps:
    """Steps of any size out of made-up sequences: decodes while there are rows, else chunks.

    ``longest`` is the most tokens a sequence may have here.
    """

    max_num_seqs: int
    longest: int
    block_size: int
    num_kv_blocks: int
    vocab_size: int

    def build(self, num_tokens: int, mode: Mode, *, step_id: int, num_before: int) -> StepPlan:
        """A step of ``num_tokens``, after ``num_before`` others of the same size.

        Every row is sampled. Decodes go on from the steps before, as they do in service; chunks
        start their slots anew. Contexts are short: attention is cut by heads in every mode, and
        takes the same time.
        """
        is_decode = num_tokens <= self.max_num_seqs
        context = num_before % self._decode_steps if is_decode else 0
        query_lens = self._query_lens(num_tokens)
        num_rows = len(query_lens)
        contexts = np.full(num_rows, context, np.int32)
        return StepPlan(
            step_id=step_id,
            shape=step_shape(query_lens, contexts, num_rows, mode),
            starts=[] if context else list(self._starts(query_lens)),
            slots=np.arange(num_rows, dtype=np.int32).tobytes(),
            query_lens=query_lens.tobytes(),
        )

    @property
    def _decode_steps(self) -> int:
        """Steps after which decodes begin anew."""
        return min(2 * MAX_ROUNDS, self.longest)

    def _query_lens(self, num_tokens: int) -> Int32Array:
        if num_tokens <= self.max_num_seqs:
            return np.ones(num_tokens, np.int32)
        chunk_tokens = min(CHUNK_TOKENS, self.longest)
        num_rows = min(-(-num_tokens // chunk_tokens), self.max_num_seqs)
        lens = np.full(num_rows, num_tokens // num_rows, np.int32)
        lens[: num_tokens % num_rows] += 1
        return lens

    def _starts(self, query_lens: Int32Array) -> Iterator[SlotStart]:
        first_block = 0
        for slot, length in enumerate(query_lens.tolist()):
            num_blocks = -(-max(length, self._decode_steps) // self.block_size)
            # Sequences share blocks where there are too few: nobody reads what lies in them.
            blocks = (np.arange(num_blocks) + first_block) % self.num_kv_blocks
            first_block += num_blocks
            ids = (np.arange(length) * 7 + slot) % self.vocab_size
            yield SlotStart(
                slot=slot,
                prompt_len=length,
                token_ids=ids.astype(np.int32).tobytes(),
                blocks=blocks.astype(np.int32).tobytes(),
            )


def _backend(config: EngineConfig) -> str:
    """The collectives in use; the same word whether named or chosen by ``auto``."""
    if config.collectives is not Collectives.AUTO:
        return config.collectives.value
    return Collectives.NCCL.value if is_cuda(config) else Collectives.SHM.value


def _table_path(config: EngineConfig, fingerprint: str) -> Path | None:
    """The file named, or one per fingerprint in the folder named."""
    path = config.mode_table_path
    if path is None or (path.suffix == ".json" and not path.is_dir()):
        return path
    return path / f"mode-table-{fingerprint}.json"
