"""What serving adds to steps: inputs of later stages, and host work where no core is free."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from engine.spec.plan import parse_plan
from engine.spec.steps import StepShape
from tests.tuner.profiles import made_up_profile, shapes
from tests.tuner.worlds import SMALL
from tuner.profiling.host_work import HostWork, HostWorkMeter, other_threads_s
from tuner.profiling.profile import Profile
from tuner.step_model.fit import fit_step_model
from tuner.step_model.model import HostCost, ServingCost, StepModel

DECODE = shapes()[6]
HOST_S, MESSAGE_S, PREPARE_S = 8e-4, 1e-4, 5e-4


@pytest.fixture(scope="module")
def profile() -> Profile:
    """Steps of 4 sequences on one rank, whose host work and inputs are known."""
    work = HostWork(num_steps=100, num_rows=400, host_s=100 * HOST_S, rank_s=100 * MESSAGE_S)
    profile = made_up_profile()
    samples = tuple(
        msgspec.structs.replace(sample, input_exposed_s=PREPARE_S) for sample in profile.samples
    )
    return replace(profile, samples=samples, host_work=(work, replace(work, num_rows=1600)))


def stages(model: StepModel, plan: str, shape: StepShape = DECODE) -> tuple[float, ...]:
    return model.timer(parse_plan(plan).plan, SMALL).stage_seconds(shape)


def on_cores(model: StepModel, num_cores: int) -> StepModel:
    return replace(model, machine=replace(model.machine, num_cores=num_cores))


def test_the_costs_of_serving_are_read_from_the_serving_run(profile: Profile) -> None:
    serving = fit_step_model(profile, SMALL).serving
    assert serving.host_cpu.seconds(DECODE) == pytest.approx(HOST_S, rel=0.01)
    assert serving.message_cpu.seconds(DECODE) == pytest.approx(MESSAGE_S, rel=0.01)
    assert serving.prepare.seconds(DECODE) == pytest.approx(PREPARE_S, rel=0.01)


def test_host_work_costs_nothing_while_a_core_is_free(profile: Profile) -> None:
    model = fit_step_model(profile, SMALL)
    assert stages(model, "tp=1") == stages(on_cores(model, 8), "tp=1")
    assert stages(on_cores(model, 3), "tp=2") == stages(on_cores(model, 8), "tp=2")


@pytest.mark.parametrize("plan", ["tp=2", "sp=2", "dp=2", "pp=2"])
def test_where_ranks_have_every_core_a_step_waits_for_host_and_messages(
    profile: Profile, plan: str
) -> None:
    model = fit_step_model(profile, SMALL)
    free, full = stages(on_cores(model, 3), plan), stages(on_cores(model, 2), plan)
    added = [b - a for a, b in zip(free, full, strict=True)]
    assert sum(added) == pytest.approx(HOST_S + len(added) * MESSAGE_S, rel=0.01)
    assert added == pytest.approx([added[0]] * len(added))


def test_stages_behind_the_first_prepare_their_inputs_too(profile: Profile) -> None:
    model = on_cores(fit_step_model(profile, SMALL), 8)
    plain = replace(model, serving=ServingCost())
    added = [b - a for a, b in zip(stages(plain, "pp=2"), stages(model, "pp=2"), strict=True)]
    assert added == pytest.approx([0.0, PREPARE_S], rel=0.01)


def test_a_device_of_its_own_shares_no_core_with_the_host(profile: Profile) -> None:
    model = fit_step_model(profile, SMALL)
    on_cuda = replace(model, machine=replace(model.machine, device="cuda"))
    assert stages(on_cuda, "tp=2") == stages(on_cores(model, 8), "tp=2")


def test_the_way_to_the_ranks_and_back_is_no_part_of_a_step() -> None:
    profile = made_up_profile()
    slower = replace(
        profile,
        pieces=tuple(
            replace(piece, step_s=piece.step_s + 4e-4, dispatch_s=4e-4) for piece in profile.pieces
        ),
    )
    model, other = (fit_step_model(p, SMALL) for p in (profile, slower))
    assert stages(other, "tp=2") == pytest.approx(stages(model, "tp=2"), rel=1e-6)


def test_a_cost_model_without_serving_costs_still_loads() -> None:
    document = fit_step_model(made_up_profile(), SMALL).to_json()
    del document["serving"]
    model = StepModel.from_json(document)
    assert model.serving.host_cpu == HostCost(per_step_s=0.0, per_seq_s=0.0)


def test_cpu_clocks_count_work_and_not_waiting() -> None:
    meter, before_s = HostWorkMeter(), time.process_time()
    meter.begin()
    until_s = time.process_time() + 0.02
    while time.process_time() < until_s:
        pass
    time.sleep(0.05)
    work = meter.end(num_steps=1, num_rows=1)
    assert 0.02 <= work.host_s <= time.process_time() - before_s


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="no CPU clocks per thread")
def test_only_the_other_threads_of_a_process_are_counted() -> None:
    before_s = other_threads_s(os.getpid())
    is_done, may_end = threading.Event(), threading.Event()
    thread = threading.Thread(target=_burn, args=(0.02, is_done, may_end))
    thread.start()
    is_done.wait()
    assert other_threads_s(os.getpid()) - before_s >= 0.015
    may_end.set()
    thread.join()


def _burn(seconds: float, is_done: threading.Event, may_end: threading.Event) -> None:
    until_s = time.thread_time() + seconds
    while time.thread_time() < until_s:
        pass
    is_done.set()
    may_end.wait()


def test_a_simulation_that_hides_host_time_is_told_all_of_it() -> None:
    profile = made_up_profile()
    pieces = tuple(replace(p, step_s=p.step_s + 4e-4, dispatch_s=4e-4) for p in profile.pieces)
    model = fit_step_model(replace(profile, pieces=pieces), SMALL)
    plan = parse_plan("tp=1").plan
    whole = model.timer(plan, SMALL, hides_host=True).host_seconds(DECODE)
    assert whole == pytest.approx(4e-4 + 1e-4, rel=0.05)  # dispatch, and the samples' scheduling
    exposed = model.timer(plan, SMALL).host_seconds(DECODE)
    assert exposed == pytest.approx(2e-4, rel=0.05)  # the samples' bubbles
