"""What each degree of tensor parallelism brings, and the sentence about it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tuner.work.degrees import Degree, Scaling, Trick


def _degree(tp: int, step_s: float, throughput: float) -> Degree:
    return Degree(
        tp=tp,
        step_s=step_s,
        communication_s=0.2 * step_s * (tp > 1),
        host_s=0.1 * step_s,
        launch_s=0.0,
        num_seqs=64,
        throughput_tokens_per_s=throughput,
    )


SCALING = Scaling(
    num_devices=8,
    num_seqs=64,
    context_tokens=1024,
    # Weights fill one device, so two carry more than twice as much; from there on it pays less.
    degrees=(_degree(1, 40e-3, 100), _degree(2, 22e-3, 300), _degree(4, 13e-3, 580),
             _degree(8, 10e-3, 900)),
    tricks=(Trick(name="one step ahead", is_on=True, gain=0.2),
            Trick(name="parallel sampling", is_on=False, gain=0.034)),
)  # fmt: skip


def test_the_sentence_says_where_doubling_stops_to_pay_and_what_would_help() -> None:
    assert SCALING.knee == 4
    assert SCALING.gain_beyond == pytest.approx(0.3)
    assert SCALING.optimal_degree == 2
    for text in (
        "beyond tp=4 each doubling gains less than 31 % (decodes of 64 sequences at 1024 tokens)",
        "at tp=8 a step is 20 % communication and 10 % host",
        "t_e=2: 4 instances of tp=2 carry the most",
        "at tp=4 one step ahead is on and gains 20.0 % and parallel sampling would gain 3.4 %",
    ):
        assert text in SCALING.text
    document = SCALING.to_json()
    assert sum(document["degrees"][3]["shares"].values()) == pytest.approx(1)
    efficiencies = [degree["efficiency"] for degree in document["degrees"]]
    assert efficiencies == pytest.approx([2 / 3, 1, 0.967, 0.75], abs=0.01)


@pytest.mark.parametrize(
    ("count", "told"),
    [
        (0, "no degree of tensor parallelism fits"),
        (1, "only tp=1 fits"),
        (2, "up to tp=2 each doubling makes a step 81 % or more faster"),
    ],
)
def test_few_degrees_are_told_as_they_are(count: int, told: str) -> None:
    few = replace(SCALING, degrees=SCALING.degrees[:count], tricks=())
    assert told in few.text
    assert few.to_json()["text"] == few.text
