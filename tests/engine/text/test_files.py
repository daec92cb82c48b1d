"""Every file of a tokenizer, against ``transformers`` on the same folder."""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from engine.models.create import create_model
from engine.spec.errors import CheckpointError
from engine.spec.model import ModelConfig
from engine.text.ends import read_end_tokens, read_served_model
from engine.text.tokenizer import Tokenizer

MESSAGES = [{"role": "user", "content": "hi <tool> you"}]
TEXTS = ("hi", "the engine keeps  <tool>a</tool> small answer", " <tool> x<|end|>", "")
PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
TOOL = {"content": "<tool>", "special": False} | PLAIN


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    create_model(tmp_path, preset="tiny", seed=3)
    return tmp_path


def assert_as_transformers(folder: Path) -> Tokenizer:
    theirs, ours = AutoTokenizer.from_pretrained(folder), Tokenizer.from_dir(folder)
    for text in TEXTS:
        for specials in (True, False):
            wanted = theirs.encode(text, add_special_tokens=specials)
            assert ours.encode(text, add_special_tokens=specials) == wanted
    wanted_text = theirs.apply_chat_template(MESSAGES, add_generation_prompt=True, tokenize=False)
    assert ours.chat_text(MESSAGES) == wanted_text
    return ours


def change_config(folder: Path, **changes: Any) -> None:
    """Set entries of ``tokenizer_config.json``; None removes one."""
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def write(folder: Path, name: str, value: Any) -> None:
    (folder / name).write_text(json.dumps(value))


@pytest.mark.parametrize("direction", ["left", "right"])
def test_padding_in_the_file_does_not_lengthen_a_prompt(folder: Path, direction: str) -> None:
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.enable_padding(length=24, pad_id=1, pad_token="<|end|>", direction=direction)
    backend.save(str(folder / "tokenizer.json"))
    assert len(assert_as_transformers(folder).encode("hi")) == 3


def test_truncation_in_the_file_does_not_shorten_a_prompt(folder: Path) -> None:
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.enable_truncation(2)
    backend.save(str(folder / "tokenizer.json"))
    assert len(assert_as_transformers(folder).encode("the engine keeps it")) > 2


@pytest.mark.parametrize("is_split", [False, True])
def test_special_tokens_in_a_prompt_are_split_where_the_config_says_so(
    folder: Path, is_split: bool
) -> None:
    change_config(folder, split_special_tokens=is_split)
    ids = assert_as_transformers(folder).encode("<|end|>", add_special_tokens=False)
    assert (len(ids) == 1) is not is_split


def test_a_padding_token_that_only_tokenizer_json_names_is_the_templates_too(folder: Path) -> None:
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.enable_padding(pad_id=2, pad_token="<|turn_end|>")
    backend.save(str(folder / "tokenizer.json"))
    change_config(folder, pad_token=None, chat_template="{{ pad_token }}")
    assert assert_as_transformers(folder).chat_text(MESSAGES) == "<|turn_end|>"


def test_added_tokens_that_only_the_config_lists_are_one_id(folder: Path) -> None:
    change_config(
        folder,
        added_tokens_decoder={"512": TOOL, "513": TOOL | {"content": "</tool>", "special": True}},
    )
    tokenizer = assert_as_transformers(folder)
    assert tokenizer.encode("<tool></tool>", add_special_tokens=False) == [512, 513]
    assert tokenizer.decode([512, 513]) == "<tool>"


def test_flags_of_a_known_token_may_be_changed_by_the_config(folder: Path) -> None:
    change_config(
        folder, added_tokens_decoder={"1": {"content": "<|end|>", "special": True} | PLAIN}
    )
    assert_as_transformers(folder)


def test_the_oldest_form_lists_added_tokens_by_their_text(folder: Path) -> None:
    write(folder, "added_tokens.json", {"<tool>": 512, "</tool>": 513})
    write(folder, "special_tokens_map.json", {"additional_special_tokens": ["</tool>"]})
    tokenizer = assert_as_transformers(folder)
    assert tokenizer.decode([512, 513]) == "<tool>"


@pytest.mark.parametrize("value", ["<|begin|>", {"content": "<|begin|>", **PLAIN}])
def test_special_tokens_that_only_the_map_names_reach_the_template(
    folder: Path, value: object
) -> None:
    change_config(folder, bos_token=None, eos_token=None)
    write(folder, "special_tokens_map.json", {"bos_token": value, "eos_token": "<|turn_end|>"})
    assert assert_as_transformers(folder).chat_text(MESSAGES).startswith("<|begin|>")


def test_special_tokens_of_any_name_are_added_and_reach_the_template(folder: Path) -> None:
    change_config(
        folder,
        image_token="<tool>",
        additional_special_tokens=["</tool>"],
        chat_template="{{ image_token }}{{ sep_token }}{{ cls_token }}",
        cls_token="<cls>",
    )
    tokenizer = assert_as_transformers(folder)
    assert tokenizer.chat_text(MESSAGES) == "<tool><cls>"
    assert len(tokenizer.encode("<tool></tool><cls>", add_special_tokens=False)) == 3


def test_an_added_token_with_another_id_than_it_can_get_is_refused(folder: Path) -> None:
    change_config(folder, added_tokens_decoder={"514": TOOL})
    with pytest.raises(CheckpointError, match=r"'<tool>' has id 514 .* but 512 after"):
        Tokenizer.from_dir(folder)


def test_the_tokenizers_end_token_ends_outputs_too(folder: Path) -> None:
    change_config(folder, eos_token="<|role|>")
    assert read_served_model(folder).eos_token_ids == (1, 2, 3)
    notice = read_end_tokens(folder, ModelConfig.from_dir(folder)).notice
    assert notice is not None
    assert notice.startswith("outputs end at token ids 1, 2, 3: ")
    assert notice.endswith("say 1, 2, the tokenizer's eos_token is 3")
    (folder / "tokenizer.json").unlink()
    assert read_served_model(folder).eos_token_ids == (1, 2)


def test_where_the_tokenizer_adds_no_end_there_is_nothing_to_say(folder: Path) -> None:
    assert read_end_tokens(folder, ModelConfig.from_dir(folder)).notice is None


TEXT = st.text(st.characters(exclude_categories=()), max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["content", "special", "name", "7", "x"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)
KEYS = (
    "added_tokens_decoder", "bos_token", "pad_token", "extra_special_tokens", "image_token",
    "additional_special_tokens", "chat_template", "split_special_tokens",
)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    create_model(folder, preset="tiny", seed=3)
    return folder


@settings(deadline=None, max_examples=150)
@given(
    config=JSON | st.dictionaries(st.sampled_from(KEYS), JSON),
    tokens_map=JSON | st.dictionaries(st.sampled_from(KEYS), JSON),
    added=JSON | st.dictionaries(st.text(max_size=4), JSON, max_size=3),
)
def test_whatever_the_files_hold_they_are_read_or_refused(
    made: Path, config: Any, tokens_map: Any, added: Any
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tokenizer.json").write_bytes((made / "tokenizer.json").read_bytes())
        write(folder, "tokenizer_config.json", config)
        write(folder, "special_tokens_map.json", tokens_map)
        write(folder, "added_tokens.json", added)
        with contextlib.suppress(CheckpointError):
            Tokenizer.from_dir(folder)


@settings(deadline=None, max_examples=150)
@given(
    content=st.text(max_size=30) | JSON.map(json.dumps),
    changes=st.dictionaries(
        st.sampled_from(["added_tokens", "model", "normalizer", "decoder", "padding", "version"]),
        JSON,
        max_size=2,
    ),
)
def test_whatever_tokenizer_json_holds_it_is_read_or_refused(
    made: Path, content: str, changes: dict[str, Any]
) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "tokenizer.json"
        whole = json.loads((made / "tokenizer.json").read_text())
        for text in (content, json.dumps(whole | changes)):
            path.write_text(text)
            with contextlib.suppress(CheckpointError):
                Tokenizer.from_dir(name)
