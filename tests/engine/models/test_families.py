"""A model family is one file and one line: every one of them is tested, and a new one just runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.models import llama
from engine.models.loader import SINGLE_FILE
from engine.spec.errors import CheckpointError
from engine.spec.families import registry
from engine.spec.families.family import Family, RawConfig, TensorNames
from engine.spec.model import ModelConfig
from tests.engine.checkpoints import FAMILIES, family_config, reference, write_checkpoint
from tests.engine.models.on_threads import answers_on_threads

PROMPTS = [[5, 9, 200, 31, 77, 8, 100], [3]]
MAX_TOKENS = 6


def refuse_windows(raw: RawConfig) -> str | None:
    return "layers with a window are not supported" if raw.get("window_layers") else None


# As a file of its own would say it: norms of the heads, names as older decoders have them.
MADE_UP = Family(
    model_type="made-up",
    qk_norm=True,
    names=TensorNames(
        embedding="transformer.wte",
        final_norm="transformer.ln_f",
        head="output",
        layers="transformer.h",
        input_norm="ln_1",
        q="attn.query",
        k="attn.key",
        v="attn.value",
        q_norm="attn.query_ln",
        k_norm="attn.key_ln",
        o="attn.out",
        post_norm="ln_2",
        gate="mlp.w1",
        up="mlp.w3",
        down="mlp.w2",
    ),
    refusal=refuse_windows,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A Qwen 3 checkpoint, told as one of the made-up family."""
    write_checkpoint(tmp_path / "qwen3", family_config("qwen3", tie_word_embeddings=False))
    made_up = tmp_path / "made-up"
    made_up.mkdir()
    raw = json.loads((tmp_path / "qwen3" / "config.json").read_text())
    (made_up / "config.json").write_text(json.dumps(raw | {"model_type": "made-up"}))
    tensors = load_file(tmp_path / "qwen3" / SINGLE_FILE)
    save_file({_renamed(name): x for name, x in tensors.items()}, made_up / SINGLE_FILE)
    return made_up


def _renamed(name: str) -> str:
    ours, theirs = vars(MADE_UP.names), vars(TensorNames())
    for field in sorted(theirs, key=lambda field: -len(theirs[field])):
        name = name.replace(theirs[field], ours[field])
    return name


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "FAMILIES", (*registry.FAMILIES, MADE_UP))


def test_every_registered_family_is_compared_with_transformers() -> None:
    assert tuple(family.model_type for family in registry.FAMILIES) == FAMILIES


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("plan", ["tp=1", "sp=2,tp=2,shift=1", "pp=2,tp=2"])
def test_a_registered_family_answers_as_the_model_it_renames(folder: Path, plan: str) -> None:
    got = answers_on_threads(folder, plan, PROMPTS, max_tokens=MAX_TOKENS)
    wanted = reference(folder.parent / "qwen3", PROMPTS, max_tokens=MAX_TOKENS, dtype=torch.float64)
    assert [s.output for s in got] == [r.output for r in wanted]


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("plan", ["tp=2", "sp=2,shift=1"])
def test_rows_that_the_ffn_takes_in_parts_are_answered_alike(
    folder: Path, plan: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama, "KEPT_BYTES", 1)
    monkeypatch.setattr(llama, "ENOUGH_ROWS", 2)
    got = answers_on_threads(folder, plan, PROMPTS, max_tokens=MAX_TOKENS)
    wanted = reference(folder.parent / "qwen3", PROMPTS, max_tokens=MAX_TOKENS, dtype=torch.float64)
    assert [s.output for s in got] == [r.output for r in wanted]


def test_a_family_that_is_not_registered_is_refused_with_those_that_are(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="'made-up' is not supported; supported are llama"):
        ModelConfig.from_dir(folder)


@pytest.mark.usefixtures("registered")
def test_a_family_refuses_in_its_own_words_what_it_cannot_compute(folder: Path) -> None:
    config = folder / "config.json"
    raw = json.loads(config.read_text())
    config.write_text(json.dumps(raw | {"window_layers": [1]}))
    with pytest.raises(CheckpointError, match=r"config\.json: layers with a window"):
        ModelConfig.from_dir(folder)
