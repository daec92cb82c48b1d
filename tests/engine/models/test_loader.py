"""Checkpoints: single and sharded files, and clear words for each thing that can be wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from engine.models.loader import INDEX_FILE, SINGLE_FILE, Checkpoint
from engine.models.shapes import expected_shapes
from engine.spec.errors import CheckpointError
from engine.spec.model import ModelConfig
from tests.engine.checkpoints import FAMILIES, family_config, write_checkpoint

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path, family_config("llama", num_hidden_layers=2))


def opened(folder: Path) -> Checkpoint:
    return Checkpoint(folder, ModelConfig.from_dir(folder), dtype=torch.float32)


def change(folder: Path, name: str, tensor: torch.Tensor | None) -> None:
    tensors = load_file(folder / SINGLE_FILE)
    tensors.pop(name, None)
    if tensor is not None:
        tensors[name] = tensor
    save_file(tensors, folder / SINGLE_FILE)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_expected_names_and_shapes_are_those_transformers_writes(
    tmp_path: Path, family: str, tied: bool
) -> None:
    has_no_key = family in ("qwen2", "mistral")
    biases: dict[str, bool] = {} if has_no_key else {"attention_bias": True}
    biases |= {"mlp_bias": True} if family == "llama" else {}
    write_checkpoint(tmp_path, family_config(family, tie_word_embeddings=tied, **biases))
    written = {name: tuple(x.shape) for name, x in load_file(tmp_path / SINGLE_FILE).items()}
    assert expected_shapes(ModelConfig.from_dir(tmp_path)) == written


def test_a_sharded_checkpoint_reads_as_the_single_file_does(folder: Path, tmp_path: Path) -> None:
    sharded = tmp_path / "sharded"
    write_checkpoint(sharded, family_config("llama", num_hidden_layers=2), shard_size="100KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    rows, columns = range(8, 24), range(3, 40)
    for name in (Q_PROJ, "lm_head.weight"):
        assert torch.equal(
            opened(sharded).read(name, rows, columns), opened(folder).read(name, rows, columns)
        )


def test_a_slice_is_read_in_the_dtype_asked_for(folder: Path) -> None:
    whole = load_file(folder / SINGLE_FILE)[Q_PROJ]
    checkpoint = Checkpoint(folder, ModelConfig.from_dir(folder), dtype=torch.bfloat16)
    assert torch.equal(checkpoint.read(Q_PROJ, range(4, 9)), whole[4:9].bfloat16())


def test_a_missing_tensor_is_named(folder: Path) -> None:
    change(folder, Q_PROJ, None)
    with pytest.raises(CheckpointError, match=f"tensor {Q_PROJ} is missing"):
        opened(folder)


def test_a_misshaped_tensor_is_named_with_both_shapes(folder: Path) -> None:
    change(folder, Q_PROJ, torch.zeros(64, 63))
    with pytest.raises(CheckpointError, match=r"has shape \[64, 63\].* asks for \[64, 64\]"):
        opened(folder)


def test_a_tensor_the_model_would_ignore_is_refused(folder: Path) -> None:
    change(folder, "model.layers.0.self_attn.o_proj.bias", torch.zeros(64))
    with pytest.raises(CheckpointError, match=r"o_proj\.bias is not part of a llama model"):
        opened(folder)


def test_a_head_equal_to_its_tied_embedding_is_the_embedding(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, family_config("llama", tie_word_embeddings=True))
    change(tmp_path, HEAD, load_file(tmp_path / SINGLE_FILE)[EMBEDDING].clone())
    assert opened(tmp_path).is_tied


def test_a_head_unlike_its_tied_embedding_is_a_head_of_its_own(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, family_config("llama", tie_word_embeddings=True))
    head = torch.ones(259, 64)
    change(tmp_path, HEAD, head)
    assert not opened(tmp_path).is_tied
    assert torch.equal(opened(tmp_path).read(HEAD, range(259)), head)


def test_a_head_of_another_shape_beside_a_tied_embedding_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, family_config("llama", tie_word_embeddings=True))
    change(tmp_path, HEAD, torch.ones(258, 64))
    with pytest.raises(CheckpointError, match=r"lm_head\.weight has shape \[258, 64\]"):
        opened(tmp_path)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_quantised_tensors_are_refused_with_their_format(folder: Path, dtype: torch.dtype) -> None:
    change(folder, Q_PROJ, torch.zeros(64, 64).to(dtype))
    with pytest.raises(CheckpointError, match=r"q_proj\.weight is quantised \((I8|F8_E4M3)\)"):
        opened(folder)


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / SINGLE_FILE).unlink()
    with pytest.raises(CheckpointError, match=f"{SINGLE_FILE}: weight file is missing"):
        opened(folder)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, family_config("llama"), shard_size="100KB")
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"{shard.name}: weight file is missing"):
        opened(tmp_path)


def test_of_a_folder_saved_to_twice_what_is_left_is_read_and_two_models_are_refused(
    folder: Path, tmp_path: Path
) -> None:
    twice = tmp_path / "twice"
    write_checkpoint(twice, family_config("llama", num_hidden_layers=2), shard_size="100KB")
    model = AutoModelForCausalLM.from_pretrained(twice)
    model.save_pretrained(twice)
    assert (twice / INDEX_FILE).exists()
    rows = range(8)
    assert torch.equal(opened(twice).read(Q_PROJ, rows), opened(folder).read(Q_PROJ, rows))
    model.save_pretrained(twice, max_shard_size="100KB")
    with pytest.raises(CheckpointError, match=f"{SINGLE_FILE} lies beside .* either may be"):
        opened(twice)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        json.dumps({"weights": {}}),
        json.dumps({"weight_map": {"x": 5}}),
        json.dumps({"weight_map": {"x": "../model.safetensors"}}),
        json.dumps({"weight_map": {"x": "é" * 128}}),
    ],
)
def test_an_index_that_makes_no_sense_is_named(folder: Path, content: str) -> None:
    (folder / INDEX_FILE).write_text(content)
    with pytest.raises(CheckpointError, match="cannot be read as a weight index"):
        opened(folder)


def test_a_damaged_file_is_named(folder: Path) -> None:
    (folder / SINGLE_FILE).write_bytes(b"\xff" * 64)
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        opened(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", [Q_PROJ, "model.norm.weight", "lm_head.weight"])
def test_a_tensor_with_a_number_that_is_none_is_refused_by_name(
    folder: Path, name: str, value: float
) -> None:
    tensor = load_file(folder / SINGLE_FILE)[name]
    tensor.view(-1)[-1] = value
    change(folder, name, tensor)
    with pytest.raises(CheckpointError, match=rf"{re.escape(name)} has values that are not finite"):
        opened(folder).read(name, range(len(tensor)))


def test_a_value_too_large_for_the_dtype_asked_for_is_refused_with_the_way_out(
    folder: Path,
) -> None:
    tensor = load_file(folder / SINGLE_FILE)[Q_PROJ]
    tensor[3, 3] = 70_000.0
    change(folder, Q_PROJ, tensor)
    assert opened(folder).read(Q_PROJ, range(8)).isfinite().all()
    narrow = Checkpoint(folder, ModelConfig.from_dir(folder), dtype=torch.float16)
    with pytest.raises(CheckpointError, match=r"q_proj.*float16 cannot hold.*wider dtype"):
        narrow.read(Q_PROJ, range(8))


def test_finite_values_whose_sum_is_too_large_are_read(folder: Path) -> None:
    tensor = torch.full_like(load_file(folder / SINGLE_FILE)[Q_PROJ], 3e38)
    change(folder, Q_PROJ, tensor)
    assert torch.equal(opened(folder).read(Q_PROJ, range(8)), tensor[:8])


JSON = st.recursive(
    st.none() | st.integers() | st.text(st.characters(exclude_categories=()), max_size=6),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    index=JSON | st.fixed_dictionaries({"weight_map": JSON}),
    content=st.binary(max_size=40)
    | st.binary(max_size=40).map(lambda tail: len(tail).to_bytes(8, "little") + tail),
)
def test_whatever_weight_files_hold_they_are_refused(
    folder: Path, index: object, content: bytes
) -> None:
    model = ModelConfig.from_dir(folder)
    (folder / INDEX_FILE).write_text(json.dumps(index))
    (folder / SINGLE_FILE).write_bytes(content)
    with pytest.raises(CheckpointError):
        Checkpoint(folder, model, dtype=torch.float32)
    (folder / INDEX_FILE).unlink()
    with pytest.raises(CheckpointError):
        Checkpoint(folder, model, dtype=torch.float32)
