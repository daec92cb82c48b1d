"""Outputs on their way from the engine's thread to a client."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import pytest

from engine.engine import Engine
from engine.server.streams import ChoiceOutput, LoopBridge, OutputStream
from engine.spec.config import EngineConfig
from engine.spec.request import FinishReason, Request, SamplingParams
from tests.engine.server.conftest import serving, simulated_engine

SAMPLING = SamplingParams(max_tokens=20, ignore_eos=True)


def _request(number: int) -> Request:
    return Request(
        request_id=f"r{number}", prompt_ids=(5, 6), sampling=SAMPLING, arrival_s=time.monotonic()
    )


def test_outputs_that_piled_up_are_merged_per_choice_and_none_is_lost(tiny_dir: Path) -> None:
    async def read_late() -> list[ChoiceOutput]:
        seen = []
        stream = OutputStream(
            engine, LoopBridge(), [_request(0), _request(1)], lambda _, output: seen.append(output)
        )
        await stream.open()
        while sum(output.is_finished for output in seen) < 2:
            await asyncio.sleep(0.001)
        items = [item async for item in stream.outputs()]
        assert sum(len(output.token_ids) for output in seen) == 40
        return items

    with simulated_engine(tiny_dir, step_s=0.0005) as engine:
        items = asyncio.run(read_late())
    assert [item.index for item in items] == [0, 1]
    assert all(len(item.output.token_ids) == 20 for item in items)
    assert all(item.output.finish_reason is FinishReason.LENGTH for item in items)


def test_log_probabilities_that_piled_up_stay_beside_their_tokens(tiny_dir: Path) -> None:
    request = replace(_request(0), sampling=replace(SAMPLING, logprobs=1))

    async def read_late() -> list[ChoiceOutput]:
        seen = []
        stream = OutputStream(
            engine, LoopBridge(), [request], lambda _, output: seen.append(output)
        )
        await stream.open()
        while not any(output.is_finished for output in seen):
            await asyncio.sleep(0.001)
        return [item async for item in stream.outputs()]

    with Engine(EngineConfig(model_dir=tiny_dir, num_kv_blocks=64)) as engine:
        (item,) = asyncio.run(read_late())
    assert [entry.token_id for entry in item.output.logprobs] == list(item.output.token_ids)
    assert len(item.output.token_ids) == 20


def test_a_bridge_wakes_a_second_loop_after_the_first_has_closed() -> None:
    bridge = LoopBridge()
    seen: list[int] = []

    async def post(number: int) -> None:
        bridge.bind()
        await asyncio.to_thread(bridge.post, lambda: seen.append(number))
        while number not in seen:
            await asyncio.sleep(0)

    asyncio.run(post(1))
    bridge.post(lambda: seen.append(2))  # nobody listens
    asyncio.run(post(3))
    assert seen == [1, 2, 3]


@pytest.mark.parametrize("stream", [False, True])
def test_a_deadline_is_kept_while_the_engine_takes_nothing_up(tiny_dir: Path, stream: bool) -> None:
    """As while its ranks start, or are replaced."""
    engine = simulated_engine(tiny_dir, step_s=0.001)
    with serving(engine, tiny_dir) as server:
        asked = {"prompt": "x", "max_tokens": 5, "n": 2, "timeout_ms": 50, "stream": stream}
        answer = server.complete(**asked)
        assert "not finished within 50 ms" in answer.text
        assert answer.status_code == (200 if stream else 408)
        with engine:
            assert engine.stats().waiting == 0
            assert server.complete(**{**asked, "timeout_ms": 60_000}).status_code == 200
            text = server.http.get("/metrics").text
    assert 'vllm:request_prompt_tokens_count{engine="0",model_name="tiny"} 4.0' in text
