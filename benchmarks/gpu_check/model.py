"""A rank with random weights of a published shape, and steps for it without a scheduler."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engine.models.presets import PRESETS
from engine.models.weights import LayerWeights, StageWeights
from engine.parallel.heads import head_layout
from engine.parallel.linear import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    VocabParallelHead,
)
from engine.parallel.mesh import RankGroups, solo_groups
from engine.rank.answers import PendingAnswer
from engine.rank.runner import ModelRunner
from engine.spec.model import DType, ModelConfig
from engine.spec.modes import BASE
from engine.spec.plan import ParallelPlan, RankCoords
from engine.spec.share import RankShare
from engine.spec.steps import SlotStart, StepPlan, StepShape

PRESET = "llama-3.1-8b"
BLOCK_SIZE = 16
SOLO = ParallelPlan()


def write_config(folder: Path, preset: str) -> ModelConfig:
    """A folder with the config.json of ``preset`` and nothing else."""
    shape = PRESETS[preset]
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": shape.num_layers,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.ffn_size,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": shape.max_positions,
        "rms_norm_eps": 1e-5,
        "rope_parameters": shape.rope,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    return ModelConfig.from_dir(folder)


def random_stage(
    *,
    model: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    groups: RankGroups,
    **_unused: object,
) -> StageWeights:
    """Random weights of one rank that has the whole model, drawn on the device."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype, device=device) * float(shape[-1] ** -0.5)

    def ones() -> Tensor:
        return torch.ones(model.hidden_size, dtype=dtype, device=device)

    def column(outputs: int) -> ColumnParallelLinear:
        rows = dict.fromkeys(SOLO.modes, range(outputs))
        return ColumnParallelLinear(draw(outputs, model.hidden_size), None, rows=rows)

    def row(inputs: int) -> RowParallelLinear:
        columns = dict.fromkeys(SOLO.modes, range(inputs))
        return RowParallelLinear(draw(model.hidden_size, inputs), columns=columns, groups=groups)

    vocab = range(model.vocab_size)
    return StageWeights(
        layout=head_layout(model, SOLO, RankCoords(p=0, s=0, t=0)),
        embedding=VocabParallelEmbedding(
            draw(model.vocab_size, model.hidden_size),
            start=0,
            rows=dict.fromkeys(SOLO.modes, vocab),
            block=vocab,
            groups=groups,
        ),
        layers=tuple(
            LayerWeights(
                input_norm=ones(),
                qkv=column(model.q_size + 2 * model.kv_size),
                qk_norm=None,
                o=row(model.q_size),
                post_norm=ones(),
                gate_up=column(2 * model.ffn_size),
                down=row(model.ffn_size),
            )
            for _ in range(model.num_layers)
        ),
        final_norm=ones(),
        head=VocabParallelHead(
            draw(model.vocab_size, model.hidden_size),
            num_valid=model.vocab_size,
            vocab_size=model.vocab_size,
            groups=groups,
        ),
    )


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of one step: of the device between its beginning and its sample, and of the clock
    from step to step with the next one always queued.
    """

    device_s: float
    clock_s: float


class Steps:
    """A runner on a device, and the steps that it is given."""

    def __init__(
        self, folder: Path, model: ModelConfig, *, num_kv_blocks: int, max_graph_tokens: int
    ) -> None:
        self.model = model
        self._num_blocks = num_kv_blocks
        self.runner = ModelRunner(
            RankShare(
                model_dir=str(folder),
                plan=SOLO,
                rank=0,
                dtype=DType.BFLOAT16,
                device="cuda:0",
                block_size=BLOCK_SIZE,
                num_kv_blocks=num_kv_blocks,
                num_slots=512,
                max_blocks_per_seq=model.max_positions // BLOCK_SIZE,
                has_parallel_sampling=True,
                max_graph_tokens=max_graph_tokens,
            ),
            groups=solo_groups(),
            load=random_stage,
        )
        self._step_id = 0
        for cache in self.runner.caches:  # zeros would be quicker than what a cache holds
            cache.keys.normal_()
            cache.values.normal_()

    def decode(self, num_seqs: int, context: int, steps: int) -> StepTime:
        """The median step of ``num_seqs`` sequences with ``context`` tokens in the cache each."""
        room = -(-(context + steps + 4) // BLOCK_SIZE)
        starts = self._starts(num_seqs, [context] * num_seqs, [1] * num_seqs, room)
        return self._time(
            [self._step(num_seqs, starts, None), *self._decodes(num_seqs, steps)], skip=3
        )

    def prefill(self, tokens: int, context: int = 0, repeats: int = 5) -> StepTime:
        """The median step of one sequence's ``tokens`` new tokens after ``context``."""
        room = -(-(context + tokens) // BLOCK_SIZE)
        steps = [
            self._step(1, self._starts(1, [context], [tokens], room), [tokens])
            for _ in range(repeats + 1)
        ]
        return self._time(steps, skip=1)

    def _decodes(self, num_seqs: int, count: int) -> Iterator[StepPlan]:
        for _ in range(count):
            yield self._step(num_seqs, [], None)

    def _starts(
        self, num_seqs: int, contexts: list[int], lengths: list[int], room: int
    ) -> list[SlotStart]:
        rng = np.random.default_rng(1)
        assert num_seqs * room <= self._num_blocks, f"{num_seqs} x {room} blocks are too many"
        blocks = rng.permutation(self._num_blocks).astype(np.int32)
        return [
            SlotStart(
                slot=slot,
                prompt_len=context + length,
                num_computed=context,
                token_ids=rng.integers(2, self.model.vocab_size, length).astype(np.int32).tobytes(),
                blocks=blocks[slot * room : (slot + 1) * room].tobytes(),
            )
            for slot, (context, length) in enumerate(zip(contexts, lengths, strict=True))
        ]

    def _step(
        self, num_seqs: int, starts: list[SlotStart], query_lens: list[int] | None
    ) -> StepPlan:
        self._step_id += 1
        lens = b"" if query_lens is None else np.array(query_lens, np.int32).tobytes()
        return StepPlan(
            step_id=self._step_id,
            shape=StepShape(mode=BASE, num_seqs=num_seqs, num_sampled=num_seqs),
            starts=starts,
            slots=np.arange(num_seqs, dtype=np.int32).tobytes(),
            query_lens=lens,
        )

    def _time(self, steps: list[StepPlan], *, skip: int) -> StepTime:
        """Run ``steps`` with one queued behind the one that runs; leave the first ``skip`` out."""
        self.runner.forget()
        torch.cuda.synchronize()
        queued: deque[PendingAnswer] = deque()
        ends, device_s = [], []

        def finish() -> None:
            result = queued.popleft().wait()
            ends.append(time.perf_counter())
            device_s.append(result.forward_s + result.sample_s)

        for step in steps:
            answer = self.runner.execute(self.runner.prepare(step))
            assert answer is not None, "one rank answers"
            queued.append(answer)
            if len(queued) == 2:
                finish()
        while queued:
            finish()
        return StepTime(
            device_s=float(np.median(device_s[skip:])),
            clock_s=float(np.median(np.diff(ends)[max(0, skip - 1) :])),
        )
