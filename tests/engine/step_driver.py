"""Drives a replica step by step without a scheduler: chunked prefill, then decodes together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from engine.plan import Mode
from engine.steps import StepPlan, StepResult, StepShape, int32

Logits = npt.NDArray[np.float64]
Execute = Callable[[StepPlan], StepResult]
ChooseMode = Callable[[int], Mode]


@dataclass(kw_only=True)
class DrivenSequence:
    """One sequence: its tokens so far, how many are cached, its blocks and its logits."""

    tokens: list[int]
    blocks: list[int]
    cached: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    prompt_len: int = 0
    logits: list[Logits] = field(default_factory=list)

    @property
    def output(self) -> list[int]:
        return self.tokens[self.prompt_len :]


class StepDriver:
    """Runs sequences to ``max_tokens`` each. ``budget`` bounds the tokens of a step."""

    def __init__(
        self,
        execute: Execute,
        *,
        vocab_size: int,
        block_size: int = 4,
        num_blocks: int = 64,
        budget: int = 64,
        mode: ChooseMode = lambda step_id: Mode.BASE,
    ) -> None:
        self._execute = execute
        self._vocab_size = vocab_size
        self._block_size = block_size
        # Handed out from the end, so that tables are neither ascending nor adjacent.
        self._free = list(range(num_blocks))
        self._budget = budget
        self._mode = mode
        self.modes: list[Mode] = []
        self.step_sizes: list[int] = []

    def run(
        self, prompts: Sequence[Sequence[int]], *, max_tokens: int, **sampling: float
    ) -> list[DrivenSequence]:
        sequences = [
            DrivenSequence(
                tokens=list(prompt),
                blocks=[],
                prompt_len=len(prompt),
                seed=i + 1,
                **sampling,  # type: ignore[arg-type]
            )
            for i, prompt in enumerate(prompts)
        ]
        while running := [s for s in sequences if len(s.output) < max_tokens]:
            self._step(running)
        for sequence in sequences:
            self._free += sequence.blocks
        return sequences

    def _step(self, running: list[DrivenSequence]) -> None:
        chunks: list[tuple[DrivenSequence, int]] = []
        left = self._budget
        for sequence in running:
            length = min(len(sequence.tokens) - sequence.cached, left)
            if length:
                chunks.append((sequence, length))
                left -= length
        sampled = [i for i, (s, n) in enumerate(chunks) if s.cached + n == len(s.tokens)]
        result = self._execute(self._plan(chunks, sampled))
        for sequence, length in chunks:
            sequence.cached += length
        ids = int32(result.token_ids)
        assert len(ids) == len(sampled)
        if sampled:
            assert result.logits is not None
            logits = np.frombuffer(result.logits).reshape(len(sampled), self._vocab_size)
        for row, i in enumerate(sampled):
            chunks[i][0].tokens.append(int(ids[row]))
            chunks[i][0].logits.append(logits[row])

    def _plan(self, chunks: list[tuple[DrivenSequence, int]], sampled: list[int]) -> StepPlan:
        step_id = len(self.modes)
        mode = self._mode(step_id)
        num_tokens = sum(length for _, length in chunks)
        self.modes.append(mode)
        self.step_sizes.append(num_tokens)
        for sequence, length in chunks:
            while len(sequence.blocks) * self._block_size < sequence.cached + length:
                sequence.blocks.append(self._free.pop((7 * step_id) % len(self._free)))
        widest = max(len(s.blocks) for s, _ in chunks)
        tables = np.full((len(chunks), widest), -1, dtype=np.int32)
        for row, (sequence, _) in enumerate(chunks):
            tables[row, : len(sequence.blocks)] = sequence.blocks
        ids = [t for s, n in chunks for t in s.tokens[s.cached : s.cached + n]]
        rows = [chunks[i][0] for i in sampled]
        return StepPlan(
            step_id=step_id,
            shape=StepShape(mode=mode, num_seqs=len(chunks), num_sampled=len(sampled)),
            query_lens=_bytes([n for _, n in chunks], np.int32),
            context_lens=_bytes([s.cached for s, _ in chunks], np.int32),
            block_tables=tables.tobytes(),
            token_ids=_bytes(ids, np.int32),
            sample_seqs=_bytes(sampled, np.int32),
            temperatures=_bytes([s.temperature for s in rows], np.float32),
            top_ks=_bytes([s.top_k for s in rows], np.int32),
            top_ps=_bytes([s.top_p for s in rows], np.float32),
            seeds=_bytes([s.seed for s in rows], np.uint64),
            positions=_bytes([len(s.output) for s in rows], np.int32),
            return_logits=True,
        )


def _bytes(values: Sequence[float], dtype: npt.DTypeLike) -> bytes:
    return np.array(values, dtype=dtype).tobytes()
