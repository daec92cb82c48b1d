"""The engine's end of the line."""

from __future__ import annotations

from pathlib import Path

from engine.spec.request import Request, SamplingParams
from engine.spec.settings import Caps
from engine.text.tokenizer import Tokenizer
from tests.engine.server.conftest import simulated_engine
from tests.engine.server.front.remote_pair import remote_pair


def test_a_prompt_of_many_choices_is_in_memory_once(tiny_dir: Path) -> None:
    """Each choice came with its own: 5 GB for a call of 1,024 with 131,072 tokens."""
    caps, sampling = Caps(max_num_seqs=1), SamplingParams(max_tokens=99, ignore_eos=True)
    with (
        simulated_engine(tiny_dir, step_s=0.01, caps=caps) as engine,
        remote_pair(engine, Tokenizer.from_dir(tiny_dir)) as pair,
    ):
        for number in range(4):
            prompt_ids = tuple(range(300, 300 + 100 * (1 + number // 3)))
            request = Request(request_id=str(number), prompt_ids=prompt_ids, sampling=sampling)
            pair.remote.submit(request, lambda output: None).result()
        (replica,) = engine._door.list_replicas()
        held = [request.prompt_ids for request in replica.list_requests()]
    assert [len(prompt_ids) for prompt_ids in held] == [100, 100, 100, 200]
    assert len({id(prompt_ids) for prompt_ids in held}) == 2
