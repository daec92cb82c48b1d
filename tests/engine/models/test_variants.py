"""Checkpoints that people have and that are no family's plain case, against ``transformers``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.engine import Engine
from engine.models.loader import SINGLE_FILE
from engine.spec.config import EngineConfig
from engine.spec.model import DType
from engine.spec.request import SamplingParams
from tests.engine.checkpoints import family_config, reference, write_checkpoint
from tests.engine.models.on_threads import answers_on_threads

PROMPTS = [[5, 9, 200, 31, 77, 8, 100], [3], [*range(200, 150, -1)]]
MAX_TOKENS = 5
PLANS = ("tp=1", "sp=2,tp=2,shift=1", "pp=2,tp=2")


def assert_as_transformers(folder: Path, plan: str) -> None:
    got = answers_on_threads(folder, plan, PROMPTS, max_tokens=MAX_TOKENS)
    wanted = reference(folder, PROMPTS, max_tokens=MAX_TOKENS, dtype=torch.float64)
    assert [s.output for s in got] == [r.output for r in wanted]
    for ours, theirs in zip(got, wanted, strict=True):
        for a, b in zip(ours.logits, theirs.logits, strict=True):
            assert abs(a - b).max() < 1e-4 * abs(b).max()


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"attention_bias": True}),
        ("llama", {"mlp_bias": True, "attention_bias": True}),
        ("qwen3", {"attention_bias": True}),
        ("mistral", {"sliding_window": 256}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 4}),
    ],
)
def test_biases_and_windows_that_no_layer_has(
    tmp_path: Path, family: str, changes: dict[str, object], plan: str
) -> None:
    write_checkpoint(tmp_path, family_config(family, **changes))
    assert_as_transformers(tmp_path, plan)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("case", ["only a head", "another head", "no prefix"])
def test_tied_files_with_a_head_of_their_own_and_names_without_prefix(
    tmp_path: Path, case: str, plan: str
) -> None:
    write_checkpoint(tmp_path, family_config("llama", tie_word_embeddings=True))
    tensors = load_file(tmp_path / SINGLE_FILE)
    if case == "only a head":
        tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    elif case == "another head":
        tensors["lm_head.weight"] = torch.randn(259, 64, generator=torch.manual_seed(5)) / 4
    else:
        tensors = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    save_file(tensors, tmp_path / SINGLE_FILE, metadata={"format": "pt"})
    assert_as_transformers(tmp_path, plan)


ORIGINAL = "original_max_position_embeddings"
ROPES = {
    "linear": {"rope_type": "linear", "factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "factor": 3.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, ORIGINAL: 32},
    "yarn with mscale": {
        "rope_type": "yarn", "factor": 8.0, ORIGINAL: 32, "mscale": 0.8, "mscale_all_dim": 0.5,
        "beta_fast": 16, "beta_slow": 2, "truncate": False,
    },
    "longrope": {
        "rope_type": "longrope", ORIGINAL: 16,
        "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 2.0, 4.0, 9.0],
    },
}  # fmt: skip


@pytest.mark.parametrize("plan", ["tp=1", "sp=2,tp=2,shift=1"])
@pytest.mark.parametrize("name", [name for name in ROPES if name != "longrope"])
def test_every_kind_of_rope(tmp_path: Path, name: str, plan: str) -> None:
    rope = {"rope_theta": 10_000.0} | ROPES[name]
    write_checkpoint(tmp_path, family_config("llama", rope_parameters=rope))
    assert_as_transformers(tmp_path, plan)


def test_longrope_beyond_its_first_context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The factors are those of the engine's context: only prompts beyond the first one agree.
    monkeypatch.setattr("tests.engine.models.test_variants.PROMPTS", [PROMPTS[2], PROMPTS[2][:20]])
    rope = {"rope_theta": 10_000.0} | ROPES["longrope"]
    write_checkpoint(tmp_path, family_config("llama", rope_parameters=rope))
    assert_as_transformers(tmp_path, "tp=1")


def test_longrope_turns_heads_alike_whatever_the_cache_has_room_for(tmp_path: Path) -> None:
    """With room for its first context only, the factors were others: so a reshape changed them."""
    rope = {"rope_theta": 10_000.0} | ROPES["longrope"]
    write_checkpoint(tmp_path, family_config("llama", rope_parameters=rope))
    sampling, found = SamplingParams(max_tokens=8, ignore_eos=True), []
    for num_kv_blocks in (1, 8):
        config = EngineConfig(
            model_dir=tmp_path,
            dtype=DType.FLOAT64,
            num_kv_blocks=num_kv_blocks,
            return_logits=True,
        )
        with Engine(config) as engine:
            found.append(engine.generate(tuple(PROMPTS[0]), sampling).logits)
    np.testing.assert_allclose(*found, rtol=1e-9)
