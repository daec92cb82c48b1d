"""Scheduling one step ahead, delta messages and prefix reuse change when work is done, not what."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.spec.request import FinishReason, Request, SamplingParams
from engine.spec.settings import Caps, Order
from tests.engine.scheduler.hashed_ranks import HashedRanks, next_token
from tests.engine.step_world import BLOCK_SIZE, MAX_MODEL_LEN, StepWorld

VOCAB_SIZE = 23
EOS = 7


def expected(request: Request) -> list[int]:
    """What a request generates when nothing else is in the world."""
    tokens, output = list(request.prompt_ids), list[int]()
    while len(output) < request.sampling.max_tokens:
        output.append(next_token(tokens, VOCAB_SIZE))
        tokens.append(output[-1])
        is_late = len(output) >= request.sampling.min_tokens
        if is_late and output[-1] == EOS and not request.sampling.ignore_eos:
            break
    return output


def make_world(
    *,
    caps: Caps,
    num_blocks: int,
    depth: int = 1,
    keeps_prefixes: bool = False,
    order: Order = Order.FCFS,
) -> StepWorld:
    ranks = HashedRanks(
        num_slots=caps.max_num_seqs,
        max_blocks=MAX_MODEL_LEN // BLOCK_SIZE,
        num_blocks=num_blocks,
        block_size=BLOCK_SIZE,
        vocab_size=VOCAB_SIZE,
    )
    return StepWorld(
        ranks=ranks,
        caps=caps,
        num_blocks=num_blocks,
        depth=depth,
        keeps_prefixes=keeps_prefixes,
        order=order,
        eos=EOS,
    )


prompts = st.lists(
    st.tuples(
        st.integers(0, 2),  # which beginning it shares with others
        st.integers(0, 20),  # how much of it
        st.integers(1, 12),  # own tokens
        st.integers(1, 20),  # output
        st.integers(-1, 1),  # priority
        st.booleans(),  # ignores the end of text
    ),
    min_size=1,
    max_size=12,
)


def make_requests(drawn: list[tuple[int, int, int, int, int, bool]]) -> list[Request]:
    return [
        Request(
            request_id=str(n),
            prompt_ids=(
                *(1 + (family * 5 + k) % 20 for k in range(shared)),
                *(1 + (n // 2 * 7 + k) % 20 for k in range(own)),
            ),
            sampling=SamplingParams(max_tokens=max_tokens, ignore_eos=ignore_eos),
            priority=priority,
        )
        for n, (family, shared, own, max_tokens, priority, ignore_eos) in enumerate(drawn)
    ]


@settings(max_examples=200, deadline=None)
@given(
    drawn=prompts,
    max_num_seqs=st.integers(1, 6),
    budget=st.integers(2, 30),
    num_blocks=st.integers(14, 60),
    depth=st.integers(1, 3),
    keeps_prefixes=st.booleans(),
    order=st.sampled_from(Order),
    looks_ahead=st.sampled_from(["never", "always", "sometimes"]),
    seed=st.integers(0, 10_000),
)
def test_outputs_do_not_depend_on_overlap_preemption_prefixes_or_aborts_of_others(
    drawn: list[tuple[int, int, int, int, int, bool]],
    max_num_seqs: int,
    budget: int,
    num_blocks: int,
    depth: int,
    keeps_prefixes: bool,
    order: Order,
    looks_ahead: str,
    seed: int,
) -> None:
    requests = make_requests(drawn)
    world = make_world(
        caps=Caps(max_num_seqs=max_num_seqs, max_num_batched_tokens=budget),
        num_blocks=num_blocks,
        depth=depth,
        keeps_prefixes=keeps_prefixes,
        order=order,
    )
    aborted = world.serve(requests, Random(seed), looks_ahead=looks_ahead)
    for request in requests:
        output = world.outputs.get(request.request_id, [])
        if request.request_id in aborted:
            assert output == expected(request)[: len(output)]
        else:
            assert output == expected(request)
    assert world.scheduler.kv_usage == 0.0
    assert world.scheduler.roster.load.tokens == 0
    assert world.scheduler.num_running == 0


def test_a_step_ahead_is_there_before_the_running_one_ends_and_a_wrong_guess_frees_its_row() -> (
    None
):
    caps = Caps(max_num_seqs=2, max_num_batched_tokens=16)
    world = make_world(caps=caps, num_blocks=40, depth=1, keeps_prefixes=True)
    request = next(
        r
        for n in range(1, 100)
        for r in make_requests([(0, 0, 1 + n % 12, 20, 0, False)])
        if 2 <= len(expected(r)) < 20
    )
    world.scheduler.add(request)
    steps = 0
    while not world.scheduler.is_idle:
        world.fill()
        world.look_ahead()
        assert len(world.flights) <= 2
        world.finish_one()
        steps += 1
    assert world.outputs[request.request_id] == expected(request)
    assert world.reasons[request.request_id] is FinishReason.STOP
    # One step more than there are tokens: the one that guessed wrong.
    assert steps == len(expected(request)) + 1
    assert world.scheduler.kv_usage == 0.0


def test_a_decode_step_of_many_sequences_sends_a_few_bytes_for_each() -> None:
    caps = Caps(max_num_seqs=256, max_num_batched_tokens=4096)
    world = make_world(caps=caps, num_blocks=20_000, depth=1, keeps_prefixes=False)
    for n in range(256):
        prompt = tuple(1 + (n + k) % 20 for k in range(40))
        sampling = SamplingParams(max_tokens=40, ignore_eos=True)
        world.scheduler.add(Request(request_id=str(n), prompt_ids=prompt, sampling=sampling))
    sizes = []
    while not world.scheduler.is_idle:
        world.fill()
        is_decode = world.flights[0].shape.num_prefill_tokens == 0
        if is_decode:
            sizes.append(world.message_bytes[-1])
        world.finish_one()
    assert sum(sizes) / len(sizes) < 8 * 256


def test_a_prompt_whose_beginning_was_computed_before_computes_only_its_end() -> None:
    caps = Caps(max_num_seqs=2, max_num_batched_tokens=64)
    world = make_world(caps=caps, num_blocks=40, depth=1, keeps_prefixes=True)
    first, second = make_requests([(1, 20, 3, 5, 0, True), (1, 20, 5, 5, 0, True)])
    for request in (first, second):
        world.scheduler.add(request)
        world.fill()
        prefilled = world.flights[0].shape.num_prefill_tokens
        while world.flights:
            world.finish_one()
            world.fill()
        assert world.outputs[request.request_id] == expected(request)
    assert prefilled == len(second.prompt_ids) - 20
    assert world.scheduler.counts.prefix_hits == 20
    assert world.scheduler.counts.prefix_queries == len(first.prompt_ids) + len(second.prompt_ids)
