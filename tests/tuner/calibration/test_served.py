"""Fitting profiles on served runs: what a fit finds again, and how published runs come out."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from engine.spec.plan import ParallelPlan
from engine.spec.settings import Settings
from tuner.backends import Backend, load_backend
from tuner.calibration.served import held_out_interval
from tuner.calibration.served_fit import (
    Fold,
    Parameter,
    fit_folds,
    relative_errors,
    simulate_rows,
    with_values,
)
from tuner.calibration.served_rows import (
    FILE,
    ServedRow,
    Simulated,
    Tool,
    mean_over_rounds,
    read_served_rows,
)
from tuner.described.parse import describe_node
from tuner.spec.errors import TunerError

SHARED = Path(__file__).parents[3].parent / "shared" / "silicon"
PARAMETERS = (
    Parameter(part="host", name="step_s", start=1e-3, spread=1e-3),
    Parameter(part="front_end", name="request_s", start=4e-3, spread=4e-2),
)


def row(**changes: object) -> ServedRow:
    values: dict[str, object] = {
        "backend": "trtllm",
        "version": "1",
        "device": "h100",
        "model": "llama-3.1-8b",
        "precision": "bf16",
        "input_tokens": 1024,
        "output_tokens": 32,
        "concurrency": 4,
        "tp": 1,
        "ttft_s": 1.0,
        "tpot_s": 1.0,
    }
    return ServedRow(**(values | changes))


def test_the_last_round_but_one_counts_for_all_that_were_not_simulated() -> None:
    of_rounds = np.array([1.0, 1.0, 4.0, 4.0, 2.0, 2.0, 3.0, 3.0])
    told = mean_over_rounds(of_rounds, clients=2, requests=20)
    assert told == pytest.approx((1 + 4 + 7 * 2 + 3) / 10)
    assert mean_over_rounds(np.arange(20.0), clients=2, requests=20) == pytest.approx(9.5)


def test_a_longer_run_has_more_rounds_that_do_not_wait_for_the_first_burst() -> None:
    of_rounds = np.array([9.0, 9.0, 4.0, 4.0, 2.0, 2.0, 3.0, 3.0])
    told = mean_over_rounds(of_rounds, clients=2, requests=31)
    assert told == pytest.approx((9 + 4 + 12.5 * 2 + 3) / 15.5)


def test_a_row_says_over_how_many_requests_its_means_are() -> None:
    assert row(concurrency=8, version="1.0.0rc3").requests == 160
    assert row(concurrency=128, version="1.0.0rc3").requests == 2000
    assert row(concurrency=8, version="1.0.0rc3").simulated_rounds == 20
    assert row(concurrency=8, backend="vllm", version="0.12.0").requests == 80
    assert row(concurrency=8, version="").requests == 80


@pytest.mark.skipif(not SHARED.exists(), reason="the published measurements are not here")
def test_published_means_are_sums_of_whole_nanoseconds_over_that_many_requests() -> None:
    with (SHARED / FILE).open() as file:
        means = [raw["ttft_ms"] for raw in csv.DictReader(file)]
    published = [
        (one, mean)
        for one, mean in zip(read_served_rows(SHARED), means, strict=True)
        if one.tool is Tool.FIXED and one.input_tokens != 4000
    ]
    whole = [
        any(_is_whole(mean, one.requests - missing) for missing in range(3))
        for one, mean in published
    ]
    assert np.mean(whole) > 0.98
    of_trtllm = [(one, mean) for one, mean in published if one.backend == "trtllm"]
    halves = [_is_whole(mean, one.requests // 2) for one, mean in of_trtllm]
    assert np.mean(halves) < 0.6


def _is_whole(mean_ms: str, requests: int) -> bool:
    """Whether so many times the mean is a whole number of nanoseconds, as far as it is rounded."""
    total = Fraction(mean_ms) * 10**6 * requests
    rounding = Fraction(math.ulp(float(mean_ms))) * 10**6 * requests
    return abs(total - round(total)) <= 2 * rounding


@pytest.mark.parametrize("clients", [8, 64])
def test_four_rounds_say_what_all_do(clients: int) -> None:
    one = row(concurrency=clients, input_tokens=2048, output_tokens=64)
    backend = load_backend("trtllm")
    told = simulate_rows([one], backend, processes=1)[0]
    node = describe_node(model=one.model, hardware="1xh100", dtype="bf16", backend="trtllm")
    result = node.simulate(
        Settings(plan=ParallelPlan(), caps=one.caps), one.workload(20, 0), seed=0
    )
    timings = result.measurement.timings
    tpot_s = np.mean([(t.token_s[-1] - t.token_s[0]) / 63 for t in timings])
    ttft_s = np.mean([t.token_s[0] - t.sent_s for t in timings])
    assert told.tpot_s == pytest.approx(tpot_s, rel=0.03)
    assert told.ttft_s == pytest.approx(ttft_s, rel=0.05)


def measured(rows: list[ServedRow], backend: Backend) -> list[ServedRow]:
    served = simulate_rows(rows, backend, processes=1)
    return [
        replace(one, ttft_s=s.ttft_s, tpot_s=s.tpot_s) for one, s in zip(rows, served, strict=True)
    ]


def test_a_fit_finds_again_what_made_the_runs_and_judges_a_group_without_it() -> None:
    backend = load_backend("trtllm")
    # With a process for each way: a fit is linear, and waiting for one is not.
    backend = replace(
        backend,
        host=replace(backend.host, is_overlapped=False),
        front_end=replace(backend.front_end, token_s=0.0),
    )
    truth = (1.3e-3, 6e-3)
    rows = [
        row(device=device, concurrency=clients, tp=tp)
        for device in ("h100", "h200")
        for clients, tp in ((2, 4), (8, 1))
    ]
    rows = measured(rows, with_values(backend, PARAMETERS, truth))
    told: list[tuple[int, int]] = []
    whole, *held_out = fit_folds(
        rows, backend, PARAMETERS, processes=1, on_progress=lambda *done: told.append(done)
    )
    assert whole.values == pytest.approx(truth, rel=0.1)
    assert told == [(i, 5) for i in range(1, 6)]
    assert [fold.group for fold in held_out] == [
        f"{d} llama-3.1-8b trtllm" for d in ("h100", "h200")
    ]
    for fold in held_out:
        # Two runs hardly tell the way in from queueing, and a request that comes a millisecond
        # later may miss a step: time to first token jumps.
        assert fold.values[0] == pytest.approx(truth[0], rel=0.1)
        tpot_errors = relative_errors(fold.rows, fold.simulated)[:, 1]
        assert np.abs(tpot_errors).max() < 0.05


def test_a_profile_is_as_far_off_as_nine_of_ten_runs_that_it_never_saw() -> None:
    ratios = [1.02] * 8 + [1.2, 3.0, float("nan")]
    rows = tuple(row() for _ in ratios)
    served = tuple(Simulated(ttft_s=1.0, tpot_s=ratio) for ratio in ratios)
    folds = [
        Fold(group=name, values=(), rows=rows[part], simulated=served[part])
        for name, part in (("a", slice(6)), ("b", slice(6, None)))
    ]
    interval = held_out_interval(folds)
    assert np.log(1.2) < interval < np.log(3.0)
    shrunk = [replace(fold, simulated=tuple(_inverse(s) for s in fold.simulated)) for fold in folds]
    assert held_out_interval(shrunk) == interval


def _inverse(served: Simulated) -> Simulated:
    return replace(served, tpot_s=1 / served.tpot_s)


def test_a_parameter_on_which_the_runs_are_silent_stays_at_its_start() -> None:
    silent = Parameter(part="kernels", name="fp8_gemm", start=1.0, spread=0.1, lowest=0.1)
    backend = load_backend("trtllm")
    rows = measured([row(tp=1), row(tp=2)], backend)
    whole = fit_folds(rows, backend, (silent,), processes=1, on_progress=lambda *_: None)[0]
    assert whole.values == (1.0,)


def test_a_run_that_does_not_fit_the_device_has_no_times() -> None:
    huge = row(model="llama-3.1-70b")
    served = simulate_rows([huge], load_backend("trtllm"), processes=1)[0]
    assert np.isnan(served.ttft_s)
    assert np.isnan(served.tpot_s)


def test_rows_know_their_tool_and_what_it_sends() -> None:
    fixed, drawn = row(), row(version="", backend="vllm", input_tokens=1024, output_tokens=100)
    assert (fixed.tool, drawn.tool) == (Tool.FIXED, Tool.INFERENCEMAX)
    assert {a.input_tokens for a in fixed.workload(3, seed=0).arrivals} == {1024}
    outputs = {a.output_tokens for a in drawn.workload(50, seed=0).arrivals}
    assert (min(outputs), max(outputs)) == (80, 100)
    assert fixed.caps.max_num_batched_tokens == 1024 + 4
    assert drawn.caps.max_num_batched_tokens == 8192
    assert str(drawn.choice) == "vllm@0.10.2,async_scheduling=on,kernels.rounds_apart=off"
    assert str(row(backend="vllm", version="0.12.0").choice) == "vllm@0.12.0"
    assert str(fixed.choice) == "trtllm"
    assert str(row(precision="fp8-block").choice) == "trtllm,kv_cache_dtype=fp8"
    waits = row(version="", precision="fp8", input_tokens=1024, output_tokens=1024)
    assert "batch_wait_timeout_iters=20" in str(waits.choice)
    assert "batch_wait" not in str(replace(waits, tp=8).choice)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TunerError, match=FILE):
        read_served_rows(tmp_path)


@pytest.mark.skipif(not SHARED.exists(), reason="the published measurements are not here")
def test_published_runs_of_vllm_come_out_within_a_fifth() -> None:
    """One short row of each degree and tool; the benchmark reports all of them."""
    rows = [one for one in read_served_rows(SHARED) if one.backend == "vllm"]
    short = [one for one in rows if one.input_tokens == 1024 and one.concurrency in (8, 16)]
    drawn = [one for one in short if one.tool is Tool.INFERENCEMAX and one.output_tokens == 1024]
    fixed = [one for one in short if one.tool is Tool.FIXED and one.output_tokens == 128]
    assert len(drawn) == len(fixed) == 6
    errors = relative_errors(
        drawn + fixed, simulate_rows(drawn + fixed, load_backend("vllm"), processes=1)
    )
    ttft, tpot = np.median(np.abs(errors), axis=0)
    assert ttft < 0.2
    assert tpot < 0.1
