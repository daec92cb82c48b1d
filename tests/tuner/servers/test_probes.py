"""What loads of a server show of its steps."""

from __future__ import annotations

import pytest

from engine.spec.measurement import Distribution, Fidelity, Measurement, Outcome, RequestTiming
from engine.spec.settings import Caps
from tuner.servers.probes import (
    Ask,
    Counted,
    Look,
    Probe,
    chunk_shapes,
    front_end,
    list_probes,
    look,
    seen_steps,
)
from tuner.spec.errors import LoadError
from tuner.workload.workload import Workload

CAPS = Caps(max_num_seqs=8, max_num_batched_tokens=512)
NOTHING = Counted(prefill_s=None)


def answered(
    first_s: float,
    gap_s: float,
    tokens: int,
    *,
    and_then: tuple[float, ...] = (),
    prompt: int = 16,
) -> RequestTiming:
    stamps = (*(first_s + gap_s * number for number in range(tokens)), *and_then)
    return RequestTiming(scheduled_s=0.0, sent_s=0.0, token_s=stamps, prompt_tokens=prompt)


def asked(*timings: RequestTiming, counted: Counted = NOTHING) -> Ask:
    run = Measurement(
        fidelity=Fidelity.MEASURED, timings=timings, driver_lag_ms=Distribution.of([0.0])
    )
    return lambda _: (run, counted)


def test_chunks_of_a_prompt_hold_all_its_tokens_and_look_at_all_before_them() -> None:
    first, second, last = chunk_shapes(1200, 512)
    assert [s.num_prefill_tokens for s in (first, second, last)] == [512, 512, 176]
    assert [s.num_sampled for s in (first, second, last)] == [0, 0, 1]
    assert sum(s.prefill_attention_pairs for s in (first, second, last)) == 1200 * 1201 // 2


def test_gaps_count_only_while_every_stream_runs() -> None:
    """The second begins late, in a step that the server first prepares, and goes on alone."""
    early = answered(0.1, 0.1, 3, and_then=(0.7, 0.8))
    late = answered(0.3, 0.1, 1, and_then=(0.7, 0.8, 1.2, 2.2, 3.2))
    found = look(Probe(streams=2, prompt=16, output=6), asked(early, late), CAPS)
    assert found is not None
    assert found.seconds == pytest.approx(0.1)
    (shape,) = found.shapes
    assert shape.num_decode_tokens == 2
    # The first has 4 tokens cached beside its prompt, the second 2.
    assert shape.decode_context_tokens == 2 * 16 + 6


def test_streams_that_never_met_show_nothing() -> None:
    one, other = answered(0.1, 0.1, 3), answered(1.0, 0.1, 3)
    assert look(Probe(streams=2, prompt=16, output=3), asked(one, other), CAPS) is None


def test_a_prompt_is_timed_by_the_server_where_it_tells() -> None:
    probe, timing = Probe(streams=1, prompt=600, output=1), answered(0.5, 0.0, 1, prompt=600)
    plain = look(probe, asked(timing), CAPS)
    told = look(probe, asked(timing, counted=Counted(prefill_s=0.4)), CAPS)
    assert plain is not None
    assert told is not None
    assert (plain.seconds, plain.front_s) == (0.5, None)
    assert told.seconds == 0.4
    assert told.front_s == pytest.approx(0.1)
    assert len(told.shapes) == 2


def test_a_server_whose_requests_fail_cannot_be_profiled() -> None:
    broken = RequestTiming(
        scheduled_s=0.0, sent_s=0.0, token_s=(), prompt_tokens=1, outcome=Outcome.ERRORED
    )
    with pytest.raises(LoadError, match="prompt of 1: 1 of 1 requests failed"):
        look(Probe(streams=1, prompt=1, output=1), asked(broken), CAPS)


def test_probes_fit_into_caps_and_context() -> None:
    probes = list_probes(CAPS, 300)
    assert max(probe.prompt + probe.output for probe in probes) <= 300
    assert max(probe.streams for probe in probes) == 8
    assert all(isinstance(probe.workload, Workload) for probe in probes)
    assert any(probe.is_needed for probe in probes)


def test_a_median_of_looks_after_the_first_is_what_was_seen() -> None:
    probe = Probe(streams=1, prompt=4, output=1)
    shapes = tuple(chunk_shapes(4, 8))
    looks = [Look(shapes=shapes, seconds=s) for s in (9.0, 1.0, 5.0, 2.0)]
    found = seen_steps(probe, looks)
    assert (found.seconds, found.repeats, found.spread) == (2.0, 3, 2.0)
    assert seen_steps(probe, looks[:1]).seconds == 9.0


def test_what_is_outside_of_steps_grows_with_the_prompt() -> None:
    def told(prompt: int, front_s: float | None) -> tuple[Probe, list[Look]]:
        shapes = tuple(chunk_shapes(prompt, 512))
        return (
            Probe(streams=1, prompt=prompt, output=1),
            [Look(shapes=shapes, seconds=0.02, front_s=front_s)],
        )

    found = front_end([told(n, 0.01 + 1e-5 * n) for n in (1, 100, 1000)], token_s=0.005)
    assert found.request_s == pytest.approx(0.01)
    assert found.prompt_token_s == pytest.approx(1e-5)
    plain = front_end([told(1, None), told(9, None)], token_s=0.005)
    assert plain.request_s == pytest.approx(0.015)
