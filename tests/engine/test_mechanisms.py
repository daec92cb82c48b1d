"""On a real model, overlap, parallel sampling and prefix reuse change nothing a caller sees."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.spec.request import Request, SamplingParams
from engine.spec.settings import Caps
from tests.engine.step_world import BLOCK_SIZE, PLAN, StepWorld
from tests.engine.thread_ranks import ThreadReplica

EOS = 2
NUM_BLOCKS = 40
CAPS = Caps(max_num_seqs=5, max_num_batched_tokens=24)

Replicas = dict[bool, ThreadReplica]


@pytest.fixture(scope="module")
def replicas(tiny_model_dir: Path) -> Iterator[Replicas]:
    """Two ranks that sample together, and two of which the first samples alone."""

    def make(is_parallel: bool) -> ThreadReplica:
        return ThreadReplica(
            model_dir=tiny_model_dir,
            plan=PLAN,
            block_size=BLOCK_SIZE,
            num_kv_blocks=NUM_BLOCKS,
            num_slots=CAPS.max_num_seqs,
            has_parallel_sampling=is_parallel,
        )

    with make(True) as parallel, make(False) as alone:
        yield {True: parallel, False: alone}


GREEDY = SamplingParams(max_tokens=9)
SAMPLINGS: tuple[Callable[[int], SamplingParams], ...] = (
    lambda seed: GREEDY,
    lambda seed: SamplingParams(max_tokens=7, temperature=0.9, top_p=0.8, seed=seed),
    lambda seed: SamplingParams(max_tokens=8, temperature=1.2, top_k=20, min_p=0.02, seed=seed),
    lambda seed: SamplingParams(
        max_tokens=8, repetition_penalty=1.4, presence_penalty=0.4, frequency_penalty=0.3
    ),
    lambda seed: SamplingParams(
        max_tokens=6,
        temperature=0.7,
        seed=seed,
        choice=seed % 3,
        logit_bias=((5, 3.0), (6, -4.0)),
        min_tokens=3,
        logprobs=2,
    ),
)


def make_requests(seed: int, count: int) -> list[Request]:
    """Prompts that share beginnings, sampled in every way."""
    rng = Random(seed)
    beginnings = [[rng.randrange(3, 500) for _ in range(14)] for _ in range(2)]
    return [
        Request(
            request_id=str(n),
            prompt_ids=(
                *rng.choice(beginnings)[: rng.randint(0, 14)],
                *(rng.randrange(3, 500) for _ in range(rng.randint(1, 6))),
            ),
            sampling=rng.choice(SAMPLINGS)(rng.randrange(1000)),
        )
        for n in range(count)
    ]


@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, 8),
    num_blocks=st.integers(9, NUM_BLOCKS),
    flips=st.integers(0, 100),
)
def test_every_mechanism_on_and_off_gives_the_same_tokens(
    replicas: Replicas, seed: int, count: int, num_blocks: int, flips: int
) -> None:
    requests = make_requests(seed, count)
    answers: dict[tuple[str, bool, bool], StepWorld] = {}
    aborted: set[str] = set()
    cases = [
        ("never", False, False),
        ("always", False, False),
        ("never", True, False),
        ("never", False, True),
        ("sometimes", True, True),
    ]
    for turn, (looks_ahead, is_parallel, keeps_prefixes) in enumerate(cases):
        world = StepWorld(
            ranks=replicas[is_parallel],
            caps=CAPS,
            num_blocks=num_blocks,
            keeps_prefixes=keeps_prefixes,
            eos=EOS,
            coin_seed=flips + turn,
        )
        aborted |= world.serve(requests, Random(seed + turn), looks_ahead=looks_ahead)
        answers[looks_ahead, is_parallel, keeps_prefixes] = world
    reference = answers["never", False, False].outputs
    for case, world in answers.items():
        for request in requests:
            name = request.request_id
            found, wanted = world.outputs.get(name, []), reference.get(name, [])
            if name in aborted:
                shorter = min(len(found), len(wanted))
                assert found[:shorter] == wanted[:shorter], case
            else:
                assert found == wanted, case
                assert found, case
