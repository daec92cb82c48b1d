from __future__ import annotations

from dataclasses import replace

import pytest

from engine.spec.modes import BASE
from engine.spec.plan import ParallelPlan
from engine.spec.steps import StepShape
from tests.tuner.worlds import LLAMA_70B
from tuner.hardware import Precision, list_links, load_link, paced_timer, parse_hardware
from tuner.hardware.collectives import CollectiveTimes, Placement, Spread
from tuner.hardware.links import LinkSpec, Topology
from tuner.spec.errors import TunerError
from tuner.work.counts import Collective, CollectiveKind

REDUCE, GATHER = CollectiveKind.ALL_REDUCE, CollectiveKind.ALL_GATHER
TO_ALL = CollectiveKind.ALL_TO_ALL


def chunk(num_tokens: int) -> StepShape:
    return StepShape(
        mode=BASE,
        num_seqs=1,
        num_prefill_tokens=num_tokens,
        prefill_context_tokens=num_tokens,
        prefill_attention_pairs=num_tokens * (num_tokens + 1) // 2,
        num_sampled=1,
    )


def communication_s(hardware: str, tp: int, num_tokens: int = 4096) -> float:
    node = parse_hardware(hardware)
    timer = paced_timer(node, LLAMA_70B, ParallelPlan(tp=tp), Precision.BF16)
    return timer.breakdown(chunk(num_tokens), 0).communication_s


def test_a_link_is_named_after_the_device() -> None:
    hardware = parse_hardware("8xh200@PCIe5")
    assert str(hardware) == "8xh200@pcie5"
    assert str(parse_hardware(str(hardware))) == str(hardware)
    assert hardware.device.link.name == "pcie5"
    assert hardware.device.calibration.endswith("link pcie5 uncalibrated")
    assert hardware.device.interval > parse_hardware("8xh200").device.interval


def test_a_devices_own_link_changes_nothing() -> None:
    assert parse_hardware("8xh200@nvlink4") == parse_hardware("8xh200")


def test_a_slower_link_slows_collectives_and_nothing_else() -> None:
    names = ("8xh100", "8xh100@nvlink3", "8xh100@pcie5", "8xh100@pcie4")
    times = [communication_s(name, 8) for name in names]
    assert times == sorted(times)
    assert times[-1] > 5 * times[0]
    plan = ParallelPlan(tp=8)
    fast, slow = (
        paced_timer(parse_hardware(n), LLAMA_70B, plan, Precision.BF16).breakdown(chunk(512), 0)
        for n in ("8xh100", "8xh100@pcie4")
    )
    assert (fast.gemm_s, fast.attention_s) == (slow.gemm_s, slow.attention_s)


def test_a_bandwidth_names_the_devices_own_link_slowed() -> None:
    own, half = communication_s("8xh200@450gb/s", 8), communication_s("8xh200@225gb/s", 8)
    assert own == pytest.approx(communication_s("8xh200", 8))
    assert 1.6 * own < half < 2.1 * own
    small, slowed = (communication_s(n, 8, 1) for n in ("8xh200", "8xh200@225gb/s"))
    assert slowed < 1.2 * small


def test_two_ranks_over_pcie_can_be_slower_than_one_over_none() -> None:
    """The crossover of slow links: what a second rank saves, the all-reduces cost."""

    def seconds(hardware: str, tp: int) -> float:
        node = parse_hardware(hardware)
        timer = paced_timer(node, LLAMA_70B, ParallelPlan(tp=tp), Precision.FP8)
        return sum(timer.stage_seconds(chunk(4096)))

    assert seconds("2xh200", 2) < 0.7 * seconds("2xh200", 1)
    assert seconds("2xh200@8gb/s", 2) > seconds("2xh200@8gb/s", 1)


@pytest.mark.parametrize("text", ["8xh200@", "8xh200@copper", "8xh200@0gb/s", "8xh200@-1gb/s"])
def test_an_unknown_link_is_refused_with_the_known_ones(text: str) -> None:
    with pytest.raises(TunerError, match="pcie5"):
        parse_hardware(text)


def test_every_link_can_be_read_and_says_where_it_is_from() -> None:
    assert {"nvlink3", "nvlink4", "pcie4", "pcie5"} <= set(list_links())
    assert all(len(load_link(name).source) > 20 for name in list_links())


@pytest.mark.parametrize("name", ["pcie4", "nvlink4"])
def test_the_law_moves_what_the_algorithms_move(name: str) -> None:
    link, size = load_link(name), 1e9
    one_s = size / link.bytes_per_s
    assert link.seconds(REDUCE, 8, size) == pytest.approx(1.75 * one_s, rel=0.05)
    assert link.seconds(TO_ALL, 8, size) == pytest.approx(0.875 * one_s, rel=0.05)
    assert link.seconds(GATHER, 8, size) == pytest.approx(7 * one_s, rel=0.05)
    assert link.seconds(CollectiveKind.SEND, 2, size) == pytest.approx(one_s, rel=0.05)


def test_a_link_of_another_schema_or_without_a_key_is_refused() -> None:
    with pytest.raises(TunerError, match=r"x\.json: schema 'link/v9'"):
        LinkSpec.from_json({"schema": "link/v9"}, where="x.json")
    with pytest.raises(TunerError, match="title"):
        LinkSpec.from_json(
            {"schema": "link/v2", "name": "x", "topology": "mesh", "wires": 7}, where="x.json"
        )
    with pytest.raises(TunerError, match=r"x\.json: topology: .*'star'"):
        LinkSpec.from_json({"schema": "link/v2", "topology": "star"}, where="x.json")


def test_a_group_in_a_mesh_has_only_the_wires_among_its_members() -> None:
    """Each of eight devices has a wire to each other one, so two of them share one of seven."""
    link, size = load_link("infinity-fabric"), 1e9
    wire_s = size / (link.bytes_per_s / 7)
    for ranks in (2, 4, 8):
        assert link.seconds(REDUCE, ranks, size) == pytest.approx(2 / ranks * wire_s, rel=0.01)
        assert link.seconds(TO_ALL, ranks, size) == pytest.approx(wire_s / ranks, rel=0.01)
        assert link.seconds(GATHER, ranks, size) == pytest.approx(wire_s, rel=0.01)
    assert link.seconds(CollectiveKind.SEND, 2, size) == pytest.approx(wire_s, rel=0.01)


def test_a_mesh_of_all_devices_is_as_fast_as_a_switch_and_a_part_of_it_is_not() -> None:
    mesh = load_link("infinity-fabric")
    switch = replace(mesh, topology=Topology.SWITCH)
    assert mesh.seconds(REDUCE, 8, 1e9) == switch.seconds(REDUCE, 8, 1e9)
    assert mesh.seconds(REDUCE, 2, 1e9) == pytest.approx(
        7 * switch.seconds(REDUCE, 2, 1e9), rel=0.01
    )


def test_groups_take_whole_nodes_and_sequence_groups_every_tp_th_rank() -> None:
    def spread(plan: ParallelPlan, kind: CollectiveKind, ranks: int) -> Spread:
        return Placement(plan, 8).spread(Collective(kind=kind, ranks=ranks, num_bytes=1.0))

    assert spread(ParallelPlan(tp=16), REDUCE, 16) == Spread(per_node=8, nodes=2)
    assert spread(ParallelPlan(sp=2, tp=8), REDUCE, 8) == Spread(per_node=8, nodes=1)
    assert spread(ParallelPlan(sp=2, tp=8), TO_ALL, 2) == Spread(per_node=1, nodes=2)
    assert spread(ParallelPlan(sp=8, tp=2), TO_ALL, 8) == Spread(per_node=4, nodes=2)


def test_only_stages_that_begin_a_node_are_reached_over_the_network() -> None:
    far = [Placement(ParallelPlan(pp=4, tp=4), 8).is_far(stage) for stage in range(4)]
    assert far == [False, False, True, False]
    assert Placement(ParallelPlan(pp=2, tp=8), 8).is_far(1)


@pytest.mark.parametrize("kind", [REDUCE, GATHER, TO_ALL])
def test_devices_that_share_a_way_out_of_their_node_wait_for_each_other(
    kind: CollectiveKind,
) -> None:
    device = parse_hardware("h100").device
    shared = replace(device, adapters_per_node=1)
    collective = Collective(kind=kind, ranks=16, num_bytes=64e6)
    own_s, shared_s = (
        CollectiveTimes(d, d.curves, ParallelPlan(tp=16), "graph").seconds(collective)
        for d in (device, shared)
    )
    assert shared_s > 3 * own_s


def test_a_gather_across_nodes_passes_the_other_nodes_parts_on() -> None:
    device = parse_hardware("h100").device

    def seconds(ranks: int) -> float:
        collective = Collective(kind=GATHER, ranks=ranks, num_bytes=64e6)
        times = CollectiveTimes(device, device.curves, ParallelPlan(tp=ranks), "graph")
        return times.seconds(collective)

    assert seconds(16) > 2 * seconds(8)


def test_a_stage_reached_over_the_network_waits_longer_for_its_rows() -> None:
    node = parse_hardware("16xh100")
    timer = paced_timer(node, LLAMA_70B, ParallelPlan(pp=4, tp=4), Precision.BF16)
    near, far, near_again = (
        timer.breakdown(chunk(4096), stage).communication_s for stage in (1, 2, 3)
    )
    assert far > near + 1e-3
    stages = timer.stage_seconds(chunk(4096))
    assert stages[2] - stages[1] == pytest.approx(far - near)
    assert near_again < far
