"""Random checkpoints: real files that `transformers` reads, and that do not babble one token."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.models.create import create_model
from engine.models.presets import PRESETS
from engine.spec.errors import CheckpointError
from engine.spec.feasible import infeasible_reasons
from engine.spec.model import ModelConfig
from engine.spec.plan import ParallelPlan
from engine.text.tokenizer import Tokenizer

PROMPT = "The engine keeps a small answer."


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    create_model(folder, preset="tiny", seed=3)
    return folder


def _digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def test_the_same_seed_writes_the_same_bytes(tiny: Path, tmp_path: Path) -> None:
    create_model(tmp_path, preset="tiny", seed=3)
    assert _digests(tmp_path) == _digests(tiny)


def test_another_seed_changes_the_weights_and_not_the_tokenizer(tiny: Path, tmp_path: Path) -> None:
    create_model(tmp_path, preset="tiny", seed=4)
    changed = {
        name for name, digest in _digests(tmp_path).items() if digest != _digests(tiny)[name]
    }
    assert changed == {"model.safetensors"}


def test_transformers_loads_it_and_greedy_output_varies(tiny: Path) -> None:
    model, info = AutoModelForCausalLM.from_pretrained(
        tiny, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    ids = torch.tensor([Tokenizer.from_dir(tiny).encode(PROMPT)])
    with torch.inference_mode():
        answer = model.generate(ids, max_new_tokens=48, do_sample=False, eos_token_id=None)
        logits = model(ids).logits
    new_ids = answer[0, ids.shape[1] :].tolist()
    assert len(set(new_ids)) > 12
    assert torch.isfinite(logits).all()
    assert logits.abs().max() < 100


def test_transformers_tokenizes_and_templates_as_we_do(tiny: Path) -> None:
    theirs, ours = AutoTokenizer.from_pretrained(tiny), Tokenizer.from_dir(tiny)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "H\u00e9!"}]
    assert theirs.encode(PROMPT) == ours.encode(PROMPT)
    assert theirs.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False
    ) == ours.chat_text(messages)
    assert theirs.apply_chat_template(messages, add_generation_prompt=True)[
        "input_ids"
    ] == ours.encode(ours.chat_text(messages), add_special_tokens=False)


def test_shards_hold_what_one_file_would(tiny: Path, tmp_path: Path) -> None:
    made = create_model(tmp_path, preset="tiny", seed=3, max_shard_bytes=200_000)
    assert len(made.weight_files) > 2
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(made.weight_files)
    one = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).state_dict()
    many = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).state_dict()
    assert all(torch.equal(one[name], many[name]) for name in one)


@pytest.mark.parametrize("preset", list(PRESETS))
@pytest.mark.parametrize("degrees", [(1, 8), (2, 4), (4, 2), (8, 1)])
def test_every_preset_runs_on_eight_ranks(preset: str, degrees: tuple[int, int]) -> None:
    shape = PRESETS[preset]
    raw = {
        "model_type": "llama",
        "num_hidden_layers": shape.num_layers,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.ffn_size,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab_size,
    }
    model = ModelConfig.from_json(raw, where=preset)
    assert not infeasible_reasons(ParallelPlan(sp=degrees[0], tp=degrees[1]), model)


def test_the_70b_shape_is_the_published_one_and_has_no_weights(tmp_path: Path) -> None:
    made = create_model(tmp_path, preset="llama-3.1-70b")
    model = ModelConfig.from_dir(tmp_path)
    assert (model.num_layers, model.hidden_size, model.ffn_size) == (80, 8192, 28_672)
    assert (model.num_heads, model.num_kv_heads, model.vocab_size) == (64, 8, 128_256)
    assert model.rope_scaling is not None
    assert 70e9 < model.num_params < 71e9
    assert made.weight_files == ()
    assert not list(tmp_path.glob("*.safetensors"))


def test_an_existing_checkpoint_is_not_overwritten(tiny: Path) -> None:
    with pytest.raises(CheckpointError, match="already holds a checkpoint"):
        create_model(tiny, preset="tiny", seed=9)


def test_an_unknown_preset_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="known: tiny, small"):
        create_model(tmp_path, preset="huge")
