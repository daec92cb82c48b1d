"""A profile from outside foresees what its server does: here one whose steps are known exactly."""

from __future__ import annotations

import pytest

from engine.spec.measurement import Measurement
from engine.spec.model import DType
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Settings
from policies.report import flat_metrics
from tuner.described.parse import describe_node
from tuner.described.profiled import node_of
from tuner.described.server_profile import ServerProfile
from tuner.servers.probes import Counted, list_probes, look
from tuner.servers.profile import ServerProfileSpec, fitted_plan, joined
from tuner.spec.errors import TunerError
from tuner.work.counts import model_sizes
from tuner.workload.parse import parse_workload
from tuner.workload.workload import Workload

SETTINGS = Settings(
    plan=ParallelPlan(tp=2), caps=Caps(max_num_seqs=64, max_num_batched_tokens=2048)
)
# A server as it is simulated on a described device, whose host works beside it.
SERVER = describe_node(model="llama-3.1-8b", hardware="2xl4", backend="vllm", max_model_len=8192)


def run_of(workload: Workload, settings: Settings = SETTINGS) -> Measurement:
    return SERVER.simulate(settings, workload).measurement


@pytest.fixture(scope="module")
def profile() -> ServerProfile:
    """What loads over the wire would show of it."""

    def ask(workload: Workload) -> tuple[Measurement, Counted]:
        return run_of(workload), Counted(prefill_s=None)

    probes = list_probes(SETTINGS.caps, 8192)
    found = {probe: look(probe, ask, SETTINGS.caps) for probe in probes}
    looks = {probe: [each] for probe, each in found.items() if each is not None}
    return ServerProfile(
        system="vllm",
        release=None,
        model=model_sizes(SERVER.model),
        dtype=DType.BFLOAT16,
        max_model_len=8192,
        plans=(fitted_plan(SETTINGS.plan, SETTINGS.caps, looks),),
        created="",
    )


@pytest.mark.parametrize(
    "load",
    [
        "poisson:rate=1,input=uniform:64..1024,output=uniform:16..64,requests=80",
        "poisson:rate=5,input=uniform:64..1024,output=uniform:16..64,requests=120",
        "closed:concurrency=24,input=lognormal:700~1,output=uniform:8..128,requests=96",
    ],
)
@pytest.mark.parametrize("caps", [SETTINGS.caps, Caps(max_num_seqs=6, max_num_batched_tokens=512)])
def test_loads_and_caps_that_no_probe_had_come_out_as_on_the_server(
    profile: ServerProfile, load: str, caps: Caps
) -> None:
    settings = Settings(plan=SETTINGS.plan, caps=caps)
    workload = parse_workload(load, seed=3)
    node = node_of(profile, SERVER.model, name="seen")
    told = flat_metrics(node.simulate(settings, workload).measurement, None)
    seen = flat_metrics(run_of(workload, settings), None)
    assert told["mean_tpot_ms"] == pytest.approx(seen["mean_tpot_ms"], rel=0.08)
    assert told["throughput_tokens_per_s"] == pytest.approx(
        seen["throughput_tokens_per_s"], rel=0.08
    )
    assert told["mean_ttft_ms"] == pytest.approx(seen["mean_ttft_ms"], rel=0.2)


def test_profiles_of_several_plans_are_one(profile: ServerProfile) -> None:
    found = joined([profile, profile])
    assert len(found.plans) == 2
    assert found.num_devices == 2


@pytest.mark.parametrize("plan", [ParallelPlan(pp=2), ParallelPlan(dp=2), ParallelPlan(sp=2)])
def test_parts_that_look_like_one_from_outside_are_refused(plan: ParallelPlan) -> None:
    with pytest.raises(TunerError, match="seen from outside"):
        ServerProfileSpec(
            url="",
            system="vllm",
            model=SERVER.model,
            dtype=DType.BFLOAT16,
            plan=plan,
            caps=SETTINGS.caps,
            seconds=1.0,
        )
