"""Prompts that a simulated engine holds back, so that more of them share a step."""

from __future__ import annotations

import pytest

from tests.tuner.simulation.timed import timings
from tuner.backends import load_backend
from tuner.spec.errors import TunerError
from tuner.spec.prompt_wait import NO_PROMPT_WAIT, PromptWait


def first_s(*arrivals: tuple[float, int, int], wait: PromptWait) -> list[float]:
    return [timing.token_s[0] for timing in timings(*arrivals, wait=wait)]


def test_a_prompt_waits_so_many_steps_while_others_decode() -> None:
    busy, late = (0.0, 16, 200), (0.2, 16, 4)
    at_once = first_s(busy, late, wait=NO_PROMPT_WAIT)[1]
    held = first_s(busy, late, wait=PromptWait(steps=20, share=0.9))[1]
    step_s = 0.0111
    assert held - at_once == pytest.approx(20 * step_s, rel=0.1)


def test_nobody_waits_for_an_engine_that_has_nothing_to_do() -> None:
    alone = (0.1, 16, 4)
    wait = PromptWait(steps=20, share=0.9)
    assert timings(alone, wait=wait) == timings(alone, wait=NO_PROMPT_WAIT)


def test_prompts_that_fill_a_step_do_not_wait() -> None:
    busy = (0.0, 16, 200)
    pair = [(0.2, 100, 4), (0.2, 120, 4)]
    held = first_s(busy, *pair, wait=PromptWait(steps=20, share=0.8))[1:]
    at_once = first_s(busy, *pair, wait=NO_PROMPT_WAIT)[1:]
    assert held == at_once


def test_a_prompt_that_does_not_fit_whole_waits_for_another_step() -> None:
    busy = (0.0, 16, 400)
    wait = PromptWait(steps=5, share=1.0)
    first, second = first_s(busy, (0.2, 200, 4), (0.2, 200, 4), wait=wait)[1:]
    assert second - first > 5 * 0.010


def test_the_words_of_tensorrt_llm_choose_it_and_others_refuse_it() -> None:
    words = "batch_wait_timeout_iters=20,batch_wait_max_tokens_ratio=0.9"
    assert load_backend(f"trtllm,{words}").prompt_wait == PromptWait(steps=20, share=0.9)
    with pytest.raises(TunerError, match="scheduled ahead"):
        load_backend(f"sglang,schedules_ahead=off,{words}")
    with pytest.raises(TunerError, match="0 to 1"):
        load_backend("trtllm,batch_wait_max_tokens_ratio=2")
