from __future__ import annotations

import math
from dataclasses import replace

import pytest

from engine.spec.plan import parse_plan
from engine.spec.settings import Settings
from engine.spec.steps import StepShape
from policies.points import INTERVAL_Z
from policies.slowness import Spread
from tuner.backends.step_errors import (
    OUTSIDE_FACTOR,
    Phase,
    ServedGroup,
    StepErrorBand,
    StepErrors,
)
from tuner.described.node import Node
from tuner.described.parse import describe_node
from tuner.described.step_error import StepError, step_error
from tuner.step_model.timer import StepScale
from tuner.workload.parse import parse_workload
from tuner.workload.workload import Workload


def band(phase: Phase, clients: tuple[int, int], half_width: float) -> StepErrorBand:
    return StepErrorBand(
        phase=phase,
        min_clients=clients[0],
        max_clients=clients[1],
        min_tp=1,
        max_tp=8,
        rows=40,
        half_width=half_width,
    )


KNOWN = StepErrors(
    bands=(
        band(Phase.PREFILL, (1, 16), 0.3),
        band(Phase.PREFILL, (1, 128), 0.4),
        band(Phase.DECODE, (1, 128), 0.2),
    ),
    devices=("h100",),
    tp=(1, 2, 4, 8),
    max_clients=128,
    max_input_tokens=8192,
    groups=(ServedGroup(device="h100", model="llama-3.1-8b"),),
    unseen=(band(Phase.PREFILL, (1, 128), 0.35), band(Phase.DECODE, (1, 128), 0.3)),
    compared=tuple(
        ServedGroup(device=device, model="llama-3.1-8b")
        for device in ("h100", "h100", "h200", "h200")
    ),
)


@pytest.fixture(scope="module")
def node() -> Node:
    found = describe_node(model="llama-3.1-8b", hardware="8xh100")
    return replace(found, backend=replace(found.backend, step_errors=KNOWN))


def clients(count: int, input_tokens: int = 100) -> Workload:
    spec = f"closed:concurrency={count},input={input_tokens},output=10,requests={count}"
    return parse_workload(spec, seed=0)


def error(node: Node, plan: str, workload: Workload) -> StepError:
    settings = Settings(plan=parse_plan(plan).plan, caps=node.backend.default_caps)
    return step_error(node, settings, workload, {})


def test_widths_are_those_of_the_phase_and_of_the_load_of_a_replica(node: Node) -> None:
    assert error(node, "tp=2", clients(8)) == StepError(prefill=0.3, decode=0.2)
    assert error(node, "tp=2", clients(64)).prefill == 0.4
    assert error(node, "dp=4,tp=2", clients(64)).prefill == 0.3


@pytest.mark.parametrize(
    ("plan", "count", "input_tokens", "word"),
    [
        ("pp=2", 8, 100, "pipeline"),
        ("sp=2", 8, 100, "sequence parallelism"),
        ("tp=1", 600, 100, "600 requests at once"),
        ("tp=1", 8, 20_000, "prompts of 20000 tokens"),
    ],
)
def test_what_was_never_measured_is_said_and_widens(
    node: Node, plan: str, count: int, input_tokens: int, word: str
) -> None:
    found = error(node, plan, clients(count, input_tokens))
    assert word in found.outside[0]
    assert found.decode == pytest.approx(0.2 * OUTSIDE_FACTOR)


def test_a_model_that_was_never_served_is_said_and_gets_the_width_of_models_left_out() -> None:
    other = describe_node(model="llama-3.1-70b", hardware="8xh100")
    other = replace(other, backend=replace(other.backend, step_errors=KNOWN))
    found = error(other, "tp=8", clients(8))
    assert "llama-3.1-8b on h100" in found.unseen
    assert (found.prefill, found.decode) == (0.35, 0.3)
    assert error(other, "tp=8", clients(64)).prefill == 0.4  # never less than of one that was
    assert not found.outside


def test_what_p_goes_by_scatters_as_told_and_as_widths_say_where_nothing_was_compared(
    node: Node,
) -> None:
    def spreading(model: str) -> Node:
        bands = tuple(replace(each, spreads=(0.1,)) for each in KNOWN.bands)
        unseen = tuple(replace(each, spreads=(0.05, 0.2)) for each in KNOWN.unseen)
        known = replace(KNOWN, bands=bands, unseen=unseen)
        found = describe_node(model=model, hardware="8xh100")
        return replace(found, backend=replace(found.backend, step_errors=known))

    def in_logs(found: StepError) -> list[tuple[float, float]]:
        return [
            (each.prompts * found.prefill / INTERVAL_Z, each.decodes * found.decode / INTERVAL_Z)
            for each in found.spreads
        ]

    served, other = spreading("llama-3.1-8b"), spreading("llama-3.1-70b")
    assert in_logs(error(served, "tp=8", clients(8))) == [pytest.approx((0.1, 0.1))]
    unseen = [pytest.approx((0.05, 0.05)), pytest.approx((0.2, 0.2))]
    assert in_logs(error(other, "tp=8", clients(8))) == unseen
    assert error(served, "pp=2", clients(8)).spreads == (Spread(),)
    assert error(node, "tp=8", clients(8)).spreads == (Spread(),), "profiles of before have none"


def test_another_training_of_a_model_that_was_served_is_known() -> None:
    alike = describe_node(model="meta-llama/Llama-3.1-8B-Instruct", hardware="1xh100")
    alike = replace(alike, backend=replace(alike.backend, step_errors=KNOWN))
    assert not error(alike, "tp=1", clients(8)).unseen


def test_a_device_without_served_runs_is_outside() -> None:
    elsewhere = describe_node(model="llama-3.1-8b", hardware="1xa100")
    elsewhere = replace(elsewhere, backend=replace(elsewhere.backend, step_errors=KNOWN))
    assert "a100" in error(elsewhere, "tp=1", clients(8)).outside[0]


def test_one_slowness_drives_both_kinds_of_steps_by_their_own_widths() -> None:
    scale = StepError(prefill=0.3, decode=0.2).scale(INTERVAL_Z)
    assert scale == StepScale(prefill=math.exp(0.3), decode=math.exp(0.2))
    decodes = StepShape(num_seqs=4, num_decode_tokens=4)
    prompt = StepShape(num_seqs=1, num_prefill_tokens=100)
    mixed = StepShape(num_seqs=5, num_prefill_tokens=100, num_decode_tokens=4)
    assert scale.of(decodes) == scale.decode
    assert scale.of(prompt) == scale.prefill
    assert scale.decode < scale.of(mixed) < scale.prefill
