"""Choosing a serving system by its release and its settings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.backends import BackendChoice, load_backend
from tuner.backends.settings import SETTINGS, setting_value
from tuner.described.catalog import backend_settings
from tuner.described.parse import describe_node
from tuner.hardware import parse_hardware
from tuner.spec.errors import TunerError


@pytest.mark.parametrize(
    ("text", "is_async"),
    [
        ("vllm", True),
        ("vllm@0.8.3", False),
        ("vllm@0.13", False),
        ("vllm@0.14.0", True),
        ("vllm@0.32", True),
        ("vllm@1", True),
        ("vllm@0.12,async_scheduling=on", True),
        ("vllm,async_scheduling=off", False),
    ],
)
def test_a_release_brings_its_defaults_and_a_setting_wins(text: str, is_async: bool) -> None:
    assert load_backend(text).host.is_overlapped is is_async


@pytest.mark.parametrize(
    ("hardware", "caps"),
    [
        ("h100", (1024, 8192)),
        ("h200", (1024, 8192)),
        ("b200", (1024, 16384)),
        ("mi325x", (1024, 16384)),
        ("a100", (256, 2048)),
        ("l40s", (256, 2048)),
    ],
)
def test_vllms_default_caps_are_those_of_the_device(hardware: str, caps: tuple[int, int]) -> None:
    node = describe_node(model="llama-3.1-8b", hardware=hardware)
    found = node.backend.default_caps
    assert (found.max_num_seqs, found.max_num_batched_tokens) == caps
    named = describe_node(
        model="llama-3.1-8b", hardware=hardware, backend="vllm,max_num_seqs=64"
    ).backend.default_caps
    assert (named.max_num_seqs, named.max_num_batched_tokens) == (64, caps[1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vllm@0.7", "defaults of 0.7 are not known; they are known from 0.8 on"),
        ("trtllm@1.0", "write trtllm alone"),
        ("vllm@new", "release 'new' is none; write vllm@0.12"),
        ("vllm,async=on", "unknown setting 'async'.*gearshift backends show"),
        ("vllm,async_schedulin=on", "did you mean 'async_scheduling'"),
        ("vllm,prefix_cache", "'prefix_cache' is no setting; write key=value"),
        ("vllm,prefix_cache=on,prefix_cache=off", "prefix_cache= stands twice"),
        ("vllm,prefix_cache=maybe", "prefix_cache=maybe: Expected `bool`"),
        ("vllm,host.step_s=-1", "host.step_s=-1: host step_s=-1.0: must be at least 0"),
        ("vllm,host.step_s=nan", "host.step_s=nan"),
        ("vllm,launch=lazy", "launch=lazy"),
        ("vllm,max_num_seqs=0", "max_num_seqs=0"),
        ("vlm@0.12", "did you mean 'vllm'"),
    ],
)
def test_a_wrong_choice_names_the_value_and_the_way_out(text: str, message: str) -> None:
    with pytest.raises(TunerError, match=message):
        load_backend(text)


def test_a_choice_says_again_what_was_chosen() -> None:
    chosen = load_backend("vllm@0.12, host.step_s=0.002, async_scheduling=true")
    assert chosen.choice == "vllm@0.12,host.step_s=0.002,async_scheduling=on"
    assert load_backend(chosen.choice) == chosen
    assert load_backend("trtllm").choice == "trtllm"


def test_every_setting_is_shown_with_where_it_is_from() -> None:
    shown = backend_settings("vllm@0.12,host.seq_s=0", "8xb200")
    told = {setting.key: (setting.value, setting.origin) for setting in shown.settings}
    assert told.keys() == SETTINGS.keys()
    assert told["async_scheduling"] == (False, "release 0.12")
    assert told["max_num_batched_tokens"] == (16384, "b200")
    assert told["host.seq_s"] == (0.0, "named")
    assert told["host.step_s"][1] == "fitted"
    assert told["prefix_cache"] == (True, "profile")


def test_every_setting_can_be_set_to_what_it_is() -> None:
    for name in ("vllm", "gearshift"):
        backend = load_backend(name, parse_hardware("h200").device)
        for key in SETTINGS:
            value = setting_value(backend, key)
            again = load_backend(f"{name},{key}={value}")
            assert setting_value(again, key) == value


@given(st.text(alphabet="vlm@0.14,=on_ \n-nane", max_size=40))
def test_any_text_is_read_or_refused_in_one_line(text: str) -> None:
    try:
        choice = BackendChoice.parse(text)
    except TunerError:
        return
    assert BackendChoice.parse(str(choice)) == choice
