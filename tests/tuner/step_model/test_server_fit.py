"""The law of a server's steps, fitted to what is seen from outside."""

from __future__ import annotations

import numpy as np
import pytest

from engine.spec.steps import StepShape
from tuner.servers.probes import PROMPTS, STREAMS, chunk_shapes
from tuner.spec.errors import TunerError
from tuner.step_model.operators import Curve
from tuner.step_model.server import ServerSteps, ServerTimer
from tuner.step_model.server_fit import SeenSteps, fit_server_steps

TRUE = ServerSteps(
    rows=Curve(x=(1.0, 64.0, 2.0**24), y=(0.01, 0.02, 0.02 + 2.0**24 * 2e-4)),
    per_seq_s=1e-4,
    per_pair_s=2e-8,
    per_context_s=1e-7,
)


def decode(streams: int, context: int) -> StepShape:
    return StepShape(
        num_seqs=streams,
        num_decode_tokens=streams,
        decode_context_tokens=streams * context,
        num_sampled=streams,
    )


def seen(name: str, shapes: tuple[StepShape, ...], noise: float = 1.0) -> SeenSteps:
    seconds = noise * sum(TRUE.seconds(shape) for shape in shapes)
    return SeenSteps(name=name, shapes=shapes, seconds=seconds, repeats=1, spread=0.0)


def everything(sigma: float = 0.0) -> list[SeenSteps]:
    rng = np.random.default_rng(0)
    prompts = [(f"prompt of {n}", tuple(chunk_shapes(n, 2048))) for n in PROMPTS]
    streams = [(f"{n} at {c}", (decode(n, c),)) for n in STREAMS for c in (28, 1036)]
    return [seen(n, s, float(np.exp(rng.normal(0, sigma)))) for n, s in (*prompts, *streams)]


@pytest.mark.parametrize(
    "shape",
    [
        decode(5, 300),
        decode(48, 100),
        decode(100, 2000),
        *chunk_shapes(700, 2048),
        StepShape(
            num_seqs=9,
            num_decode_tokens=8,
            num_prefill_tokens=500,
            decode_context_tokens=2400,
            prefill_attention_pairs=500 * 501 // 2,
            prefill_context_tokens=500,
            num_sampled=9,
        ),
    ],
)
def test_steps_that_nobody_saw_take_as_long_as_the_law_says(shape: StepShape) -> None:
    fit = fit_server_steps(everything())
    assert fit.steps.seconds(shape) == pytest.approx(TRUE.seconds(shape), rel=0.03)


def test_what_is_left_out_says_how_sure_the_fit_is() -> None:
    quiet, noisy = fit_server_steps(everything()), fit_server_steps(everything(sigma=0.2))
    assert len(noisy.errors) == len(everything())
    assert quiet.interval < 0.1 < noisy.interval < 1


def test_no_noise_makes_a_step_of_more_rows_quicker() -> None:
    fit = fit_server_steps(everything(sigma=0.5))
    times = [fit.steps.rows.at(rows) for rows in (1, 2, 7, 40, 300, 5000)]
    assert times == sorted(times)


def test_too_little_is_refused() -> None:
    with pytest.raises(TunerError, match="3 kinds of steps were seen: too few"):
        fit_server_steps(everything()[:3])


def test_a_timer_tells_the_whole_step_by_its_parts() -> None:
    timer, shape = ServerTimer(TRUE), decode(8, 100)
    assert timer.breakdown(shape).step_s == pytest.approx(sum(timer.stage_seconds(shape)))
