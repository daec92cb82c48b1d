"""The conformance suite of ``engine.server.served.ServedEngine``.

A test module subclasses :class:`ServedEngineContract` and provides ``served``, over an engine of
:func:`contract_engine` whose model has the tiny preset's vocabulary and byte tokenizer.
"""

from __future__ import annotations

import itertools
import queue
import time
from dataclasses import replace

import pytest

from engine.server.served import ServedEngine
from engine.spec.errors import (
    PlanError,
    PolicyError,
    QueueFullError,
    RequestError,
    StalePolicyError,
)
from engine.spec.request import FinishReason, Request, RequestOutput, SamplingParams
from engine.transition.costs import TransitionLimits
from engine.transition.planning import Way
from tests.engine.configs import policy_with
from tests.waiting import wait_until

MAX_QUEUE = 4
MAX_NUM_SEQS = 2
PROMPT = (5, 6, 7)

_numbers = itertools.count()


def submit(
    served: ServedEngine, *, request_id: str | None = None, **sampling: object
) -> tuple[str, queue.Queue[RequestOutput]]:
    """Hand one request in, wait until it is accepted, and return its id and its outputs."""
    params = SamplingParams(**{"max_tokens": 12, "ignore_eos": True, **sampling})
    request = Request(
        request_id=request_id or f"contract-{next(_numbers)}",
        prompt_ids=PROMPT,
        sampling=params,
        arrival_s=time.monotonic(),
    )
    outputs: queue.Queue[RequestOutput] = queue.Queue()
    accepted = served.submit(request, outputs.put)
    if accepted is not None:
        accepted.result(timeout=30)
    return request.request_id, outputs


def read(outputs: queue.Queue[RequestOutput]) -> list[RequestOutput]:
    """The outputs up to the last one."""
    found = [outputs.get(timeout=30)]
    while not found[-1].is_finished:
        found.append(outputs.get(timeout=30))
    return found


def text_of(outputs: list[RequestOutput]) -> str:
    return "".join(output.text for output in outputs)


class ServedEngineContract:
    """Subclasses provide ``served``: running, plan ``tp=1``, ``MAX_QUEUE``, ``MAX_NUM_SEQS``."""

    def test_an_engine_whose_ranks_compute_is_not_paced(self, served: ServedEngine) -> None:
        assert served.paced_as is None

    def test_outputs_hold_tokens_text_stamps_and_a_reason_at_the_end(
        self, served: ServedEngine
    ) -> None:
        _, outputs = submit(served)
        found = read(outputs)
        assert sum(len(output.token_ids) for output in found) == 12
        assert found[-1].finish_reason is FinishReason.LENGTH
        assert text_of(found)
        stamps = [output.token_s for output in found]
        assert stamps == sorted(stamps)
        assert found[0].scheduled_s is not None
        assert found[0].scheduled_s <= stamps[0]

    def test_the_same_seed_gives_the_same_text_and_a_stop_string_cuts_it(
        self, served: ServedEngine
    ) -> None:
        whole = read(submit(served, temperature=1.0, seed=7, max_tokens=40)[1])
        wait_until(lambda: served.stats().finished[FinishReason.LENGTH] == 1)
        text = text_of(whole)
        stop = text[len(text) // 2 : len(text) // 2 + 2]
        before = served.stats().finished
        # So long that the engine does not reach its end before it hears of the stop string.
        long = served.max_model_len - len(PROMPT)
        cut = read(submit(served, temperature=1.0, seed=7, max_tokens=long, stop=(stop,))[1])
        assert text_of(cut) == text[: text.index(stop)]
        assert cut[-1].finish_reason is FinishReason.STOP
        assert sum(len(output.token_ids) for output in cut) < 40
        ended = {**before, FinishReason.STOP: before[FinishReason.STOP] + 1}
        wait_until(lambda: served.stats().finished == ended)

    def test_an_aborted_request_ends_and_frees_its_sequence(self, served: ServedEngine) -> None:
        before = served.stats().finished[FinishReason.ABORT]
        request_id, outputs = submit(served, max_tokens=400)
        outputs.get(timeout=30)
        served.abort(request_id)
        served.abort("nobody")
        assert read(outputs)[-1].finish_reason is FinishReason.ABORT
        wait_until(lambda: served.stats().finished[FinishReason.ABORT] == before + 1)
        wait_until(lambda: served.stats().running == 0)

    def test_a_stop_found_by_whoever_makes_the_text_counts_as_one(
        self, served: ServedEngine
    ) -> None:
        before = served.stats().finished
        request_id, outputs = submit(served, max_tokens=served.max_model_len - len(PROMPT))
        outputs.get(timeout=30)
        served.abort(request_id, reason=FinishReason.STOP)
        assert read(outputs)[-1].finish_reason is FinishReason.STOP
        ended = {**before, FinishReason.STOP: before[FinishReason.STOP] + 1}
        wait_until(lambda: served.stats().finished == ended)

    def test_requests_side_by_side_keep_their_own_outputs(self, served: ServedEngine) -> None:
        alone = [text_of(read(submit(served, temperature=1.0, seed=s)[1])) for s in range(4)]
        together = [submit(served, temperature=1.0, seed=s)[1] for s in range(4)]
        assert [text_of(read(outputs)) for outputs in together] == alone

    def test_a_request_that_cannot_run_is_refused(self, served: ServedEngine) -> None:
        with pytest.raises(RequestError, match="is more than"):
            submit(served, max_tokens=served.max_model_len)

    def test_an_id_in_use_is_refused_and_the_first_request_of_that_id_goes_on(
        self, served: ServedEngine
    ) -> None:
        request_id, outputs = submit(served, max_tokens=served.max_model_len - len(PROMPT))
        outputs.get(timeout=30)
        with pytest.raises(RequestError, match="is in use"):
            submit(served, request_id=request_id)
        served.abort(request_id)
        assert read(outputs)[-1].finish_reason is FinishReason.ABORT

    def test_a_full_queue_is_refused_and_what_was_accepted_goes_on(
        self, served: ServedEngine
    ) -> None:
        accepted = []
        for _ in range(MAX_NUM_SEQS):
            accepted.append(submit(served, max_tokens=served.max_model_len - len(PROMPT)))
            accepted[-1][1].get(timeout=30)
        accepted += [submit(served) for _ in range(MAX_QUEUE)]
        with pytest.raises(QueueFullError, match=f"max_queue is {MAX_QUEUE}"):
            submit(served)
        for request_id, _ in accepted:
            served.abort(request_id)
        assert {read(outputs)[-1].finish_reason for _, outputs in accepted} == {FinishReason.ABORT}

    def test_a_policy_is_in_force_once_applied(self, served: ServedEngine) -> None:
        old = served.policy
        settings = replace(old.settings, threshold_tokens=old.settings.threshold_tokens + 1)
        new = replace(old, settings=settings, version=old.version + 1)
        applied = served.apply(new, expected=old)
        assert set(applied.changes) == {"shift.threshold_tokens"}
        assert served.policy == new
        assert served.stats().policy_version == new.version
        found = {knob.name: knob.current for knob in served.capabilities()}
        assert found["shift.threshold_tokens"] == settings.threshold_tokens

    def test_a_preview_says_how_ranks_would_start_and_end(self, served: ServedEngine) -> None:
        old = served.policy
        found = served.preview(
            policy_with(old, plan=replace(old.settings.plan, dp=2)),
            limits=TransitionLimits(drain_s=7),
        )
        assert found is not None
        assert found.transition.way is Way.ADD
        assert found.transition.peak_devices == 2
        assert not found.price.is_measured
        hot = replace(old.settings, threshold_tokens=old.settings.threshold_tokens + 1)
        assert served.preview(replace(old, settings=hot)) is None
        with pytest.raises(PlanError):
            served.preview(policy_with(old, plan=replace(old.settings.plan, tp=64)))
        assert served.policy == old

    def test_refused_policies_keep_their_kind_and_what_they_need(
        self, served: ServedEngine
    ) -> None:
        old = served.policy
        with pytest.raises(StalePolicyError):
            served.apply(old, expected=replace(old, version=old.version + 9))
        wide = replace(old.settings.caps, max_num_seqs=served.envelope.max_num_seqs + 1)
        with pytest.raises(PolicyError) as refused:
            served.apply(policy_with(old, caps=wide))
        assert refused.value.needs == "restart"
        with pytest.raises(PlanError):
            served.apply(policy_with(old, plan=replace(old.settings.plan, tp=64)))
        assert served.policy == old

    def test_it_tells_its_model_and_its_health(self, served: ServedEngine) -> None:
        assert served.is_healthy
        assert served.model.vocab_size > max(PROMPT)
        assert (served.model_dir / "config.json").exists()
