"""One rank's runner: the weights it holds, and what its answer tells."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from engine.parallel.mesh import solo_groups
from engine.rank.runner import ModelRunner
from engine.spec.errors import PlanError
from engine.spec.model import DType, ModelConfig
from engine.spec.modes import BASE
from engine.spec.plan import ParallelPlan, parse_plan
from engine.spec.share import RankShare
from engine.spec.steps import SlotSampling, SlotStart, StepPlan, StepShape, float32, int32
from tests.engine.checkpoints import family_config, write_checkpoint
from tests.engine.thread_ranks import ThreadReplica


@pytest.fixture(scope="module")
def llama_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 8 query heads, 2 KV heads and a vocabulary of 259."""
    return write_checkpoint(tmp_path_factory.mktemp("llama"), family_config("llama"))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("text", ["tp=1", "tp=2", "sp=2,tp=2", "sp=4,tp=2", "sp=8", "pp=2,sp=2"])
def test_resident_weights_are_the_base_shard_and_shift_adds_nothing(
    tmp_path: Path, text: str, tied: bool
) -> None:
    write_checkpoint(tmp_path, family_config("qwen2", tie_word_embeddings=tied))
    model = ModelConfig.from_dir(tmp_path)
    plan = parse_plan(text).plan
    with ThreadReplica(model_dir=tmp_path, plan=plan) as replica:
        bytes_per_rank = [runner.weight_bytes for runner in replica.runners]
    for rank, got in enumerate(bytes_per_rank):
        assert got == 8 * _base_shard_elements(model, plan, rank)
    if plan.sp > 1:
        shift = parse_plan(f"{text},shift").plan
        with ThreadReplica(model_dir=tmp_path, plan=shift) as replica:
            assert [runner.weight_bytes for runner in replica.runners] == bytes_per_rank


def _base_shard_elements(model: ModelConfig, plan: ParallelPlan, rank: int) -> int:
    """Elements of the shards base mode computes with, from the shapes alone."""
    hidden, head_dim, tp = model.hidden_size, model.head_dim, plan.tp
    heads = model.num_heads // tp + 2 * max(1, model.num_kv_heads // tp)
    qkv = heads * head_dim * (hidden + 1)
    layer = qkv + (model.q_size + 3 * model.ffn_size) // tp * hidden + 2 * hidden
    vocab_block = -(-model.vocab_size // plan.stage_size)
    stage = rank // plan.stage_size
    total = model.num_layers // plan.pp * layer
    if stage == 0:
        total += vocab_block * plan.sp * hidden
    if stage == plan.pp - 1:
        # One tail for both modes: base mode, too, uses 1/(sp*tp) of the head.
        is_view = model.tie_embeddings and plan.pp == 1
        total += hidden + (0 if is_view else vocab_block * hidden)
    return total


def test_a_step_that_samples_nothing_answers_with_no_ids(llama_dir: Path) -> None:
    plan = ParallelPlan(sp=2, tp=2)
    with ThreadReplica(model_dir=llama_dir, plan=plan) as replica:
        start = SlotStart(
            slot=3,
            prompt_len=7,
            token_ids=np.arange(7, dtype=np.int32).tobytes(),
            blocks=np.arange(2, dtype=np.int32).tobytes(),
        )
        result = replica.execute(
            StepPlan(
                step_id=4,
                shape=StepShape(mode=BASE, num_seqs=1, num_prefill_tokens=5),
                starts=[start],
                slots=np.array([3], np.int32).tobytes(),
                query_lens=np.array([5], np.int32).tobytes(),
            )
        )
    assert result.step_id == 4
    assert result.token_ids == b""
    assert min(result.input_s, result.forward_s, result.communication_s, result.sample_s) >= 0
    assert result.communication_s > 0


def prompt_plan(*samplings: SlotSampling) -> StepPlan:
    """A prompt of 5 tokens for each, sampled at once."""
    starts = [
        SlotStart(
            slot=slot,
            prompt_len=5,
            token_ids=np.arange(10 * slot, 10 * slot + 5, dtype=np.int32).tobytes(),
            blocks=np.array([2 * slot, 2 * slot + 1], np.int32).tobytes(),
            sampling=sampling,
        )
        for slot, sampling in enumerate(samplings)
    ]
    count = len(starts)
    return StepPlan(
        step_id=0,
        shape=StepShape(num_seqs=count, num_prefill_tokens=5 * count, num_sampled=count),
        starts=starts,
        slots=np.arange(count, dtype=np.int32).tobytes(),
        query_lens=np.full(count, 5, np.int32).tobytes(),
        return_logits=True,
    )


@pytest.mark.parametrize("text", ["tp=1", "sp=2,tp=2", "pp=2,tp=2"])
def test_the_answer_holds_log_probabilities_of_the_models_own_logits(
    llama_dir: Path, text: str
) -> None:
    step = prompt_plan(
        SlotSampling(num_logprobs=3),
        SlotSampling(temperature=1.0, seed=4, logit_bias={17: 50.0}, num_logprobs=2),
        SlotSampling(),
    )
    plan = parse_plan(text).plan
    with ThreadReplica(model_dir=llama_dir, plan=plan) as replica:
        result = replica.execute(step)
    arrays = result.sampled_logprobs
    assert arrays is not None
    assert arrays.num_best == 3
    chosen = int32(result.token_ids)
    assert chosen[1] == 17
    told_ids = int32(arrays.ids).reshape(3, 4)
    told = float32(arrays.logprobs).reshape(3, 4)
    logits = torch.from_numpy(np.frombuffer(result.logits or b"").reshape(3, -1).copy())
    wanted = logits.log_softmax(dim=-1).numpy()
    for row, num_best in ((0, 3), (1, 2)):
        best = np.argsort(-wanted[row], kind="stable")[:num_best]
        assert told_ids[row, : 1 + num_best].tolist() == [chosen[row], *best.tolist()]
        ids = told_ids[row, : 1 + num_best]
        assert np.allclose(told[row, : 1 + num_best], wanted[row, ids], atol=1e-5)
        is_better = wanted[row] > wanted[row, chosen[row]]
        assert int32(arrays.ranks)[row] == 1 + is_better.sum()


@pytest.mark.parametrize("num_computed", [4, 5])
def test_the_last_layer_multiplies_more_than_keys_and_values_for_sampled_rows_alone(
    llama_dir: Path, num_computed: int
) -> None:
    model = ModelConfig.from_dir(llama_dir)
    whole = prompt_plan(SlotSampling())
    step = whole if num_computed == 5 else _without_its_last_token(whole)
    with ThreadReplica(model_dir=llama_dir, plan=ParallelPlan()) as replica:
        (runner,) = replica.runners
        with FlopCounterMode(display=False) as counter:
            runner.execute(runner.prepare(step))
    aten, counts = torch.ops.aten, counter.get_flop_counts()["Global"]
    qkv = model.hidden_size * (model.q_size + 2 * model.num_kv_heads * model.head_dim)
    layer = qkv + model.hidden_size * (model.q_size + 3 * model.ffn_size)
    sampled = layer - qkv + model.hidden_size * model.vocab_size
    products = num_computed * (layer * (model.num_layers - 1) + qkv)
    products += sampled * (num_computed == 5)
    assert counts.get(aten.mm, 0) + counts.get(aten.addmm, 0) == 2 * products


def _without_its_last_token(step: StepPlan) -> StepPlan:
    """The first chunk of a prompt of 5, after which nothing is sampled."""
    shape = StepShape(num_seqs=1, num_prefill_tokens=4)
    return msgspec.structs.replace(
        step, shape=shape, query_lens=np.array([4], np.int32).tobytes(), return_logits=False
    )


def test_what_the_rank_waited_for_is_told_with_the_answer(llama_dir: Path) -> None:
    with ThreadReplica(model_dir=llama_dir, plan=ParallelPlan()) as replica:
        (runner,) = replica.runners
        answer = runner.execute(runner.prepare(prompt_plan(SlotSampling())))
        assert answer is not None
        assert answer.is_ready
        assert not answer.is_deferred
        answer.idle_s, answer.prepare_wait_s = 7.0, 5.0
        result = answer.wait()
    assert result.idle_s == 7.0
    assert 5.0 < result.input_exposed_s < 6.0
    assert 0.0 < result.input_s < 5.0


def test_a_plan_the_model_cannot_run_is_refused_with_the_numbers(llama_dir: Path) -> None:
    with pytest.raises(PlanError, match="8 query heads do not divide by sp"):
        ModelRunner(
            RankShare(
                model_dir=str(llama_dir),
                plan=ParallelPlan(tp=3),
                rank=0,
                dtype=DType.FLOAT32,
                device="cpu",
                block_size=4,
                num_kv_blocks=4,
                num_slots=2,
                max_blocks_per_seq=4,
                has_parallel_sampling=True,
            ),
            groups=solo_groups(),
        )
