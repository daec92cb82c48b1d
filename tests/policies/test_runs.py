from __future__ import annotations

from itertools import pairwise

import pytest

from policies.runs import Runs, SimulatedRun
from policies.sla import Sla
from policies.slowness import Spread

TTFT = Sla.parse("p95_ttft_ms<=200").per_run
BOTH = Sla.parse("p95_ttft_ms<=200,p95_tpot_ms<=20").per_run


def run(slowness: float, draw: int = 0, ttft: float = 100.0, tpot: float = 10.0) -> SimulatedRun:
    """Both latencies double with each standard error that steps are slower."""
    grown = 2.0**slowness
    metrics = {"p95_ttft_ms": ttft * grown, "p95_tpot_ms": tpot * grown}
    return SimulatedRun(slowness=slowness, draw=draw, metrics=metrics)


def three(ttft: float = 100.0, tpot: float = 10.0) -> tuple[SimulatedRun, ...]:
    return tuple(run(slowness, ttft=ttft, tpot=tpot) for slowness in (0.0, 1.6, -1.6))


def test_one_cause_moves_all_constraints_so_two_that_bind_alike_cost_no_more_than_one() -> None:
    runs = Runs(three())
    assert runs.room(0, TTFT) == pytest.approx(1.0)
    assert runs.chance(TTFT) == pytest.approx(0.841, abs=0.001)
    assert runs.chance(BOTH) == pytest.approx(runs.chance(TTFT))


def test_constraints_that_bind_for_two_causes_cost_more_than_one() -> None:
    prompts = {"p95_ttft_ms": 100.0 * 2**1.6, "p95_tpot_ms": 10.0}
    alone = SimulatedRun(slowness=1.6, draw=0, metrics=prompts, prompts_alone=True)
    apart = Runs((*three(), alone), correlation=0.0)
    assert apart.chance(TTFT) == pytest.approx(0.841, abs=0.001)
    assert apart.chance(BOTH) == pytest.approx(0.841**2, abs=0.002)
    assert apart.room(0, BOTH) == pytest.approx(1.0)
    assert Runs((*three(), alone)).chance(BOTH) == pytest.approx(0.841, abs=0.001)
    bound = apart.find_bound(TTFT[0], BOTH[1:], 0.8)
    assert bound is not None
    found = Sla.parse(f"p95_ttft_ms<={bound},p95_tpot_ms<=20").per_run
    assert apart.chance(found) == pytest.approx(0.8, abs=1e-3)


def test_steps_that_are_slow_on_average_leave_less_room() -> None:
    runs = Runs(three(), prompts_mean=1.0)
    assert runs.chance(TTFT) == pytest.approx(0.5)
    assert runs.room(0, TTFT) == pytest.approx(1.0)


def test_the_first_constraint_to_be_missed_decides() -> None:
    assert Runs(three(tpot=20.0)).chance(BOTH) == pytest.approx(0.5)


def test_draws_that_differ_make_a_sure_answer_less_sure_and_a_hopeless_one_less_hopeless() -> None:
    alike = [run(1.0, draw) for draw in range(1, 5)]
    apart = [run(1.0, 1, ttft=50), run(1.0, 2, ttft=200), run(1.0, 3), run(1.0, 4)]
    sure = Runs((*three(), *alike)).chance(TTFT)
    assert sure == pytest.approx(Runs(three()).chance(TTFT), abs=0.01)
    assert Runs((*three(), *apart)).chance(TTFT) < sure
    hopeless = three(ttft=400.0)
    spread = [run(0.0, 1, ttft=150), run(0.0, 2, ttft=800), run(0.0, 3, ttft=400)]
    assert Runs((*hopeless, *spread)).chance(TTFT) > Runs(hopeless).chance(TTFT)


def test_steps_that_scatter_less_than_widths_say_make_a_likely_answer_likelier() -> None:
    """And an unlikely one less likely: their widths hold more than what P is about."""
    narrow = (Spread(prompts=0.5, decodes=0.5),)
    for ttft in (60.0, 100.0, 300.0):
        wide = Runs(three(ttft=ttft)).chance(TTFT)
        found = Runs(three(ttft=ttft), spreads=narrow).chance(TTFT)
        assert abs(found - 0.5) > abs(wide - 0.5)


def test_scatter_that_is_not_known_leaves_long_tails() -> None:
    """Of 0.5 and 1.5, and not of what is between them."""
    unknown = tuple(Spread(prompts=spread, decodes=spread) for spread in (0.5, 1.5))
    far = Runs(three(ttft=25.0), spreads=unknown)
    assert far.chance(TTFT) == pytest.approx((1 + 0.9772) / 2, abs=0.002)
    assert Runs(three(ttft=25.0)).chance(TTFT) > far.chance(TTFT)


def test_each_kind_of_steps_scatters_by_its_own() -> None:
    prompts = {"p95_ttft_ms": 100.0 * 2**1.6, "p95_tpot_ms": 10.0}
    alone = SimulatedRun(slowness=1.6, draw=0, metrics=prompts, prompts_alone=True)
    calm = Runs((*three(), alone), correlation=0.0, spreads=(Spread(prompts=1.0, decodes=0.0),))
    assert calm.chance(BOTH) == pytest.approx(calm.chance(TTFT), abs=1e-6)
    assert calm.chance(BOTH) == pytest.approx(0.841, abs=0.001)


def test_a_number_that_no_run_has_is_never_met() -> None:
    assert Runs(three()).chance(Sla.parse("p95_itl_ms<=1e6").per_run) < 0.01


def test_a_bound_found_for_a_chance_has_that_chance() -> None:
    runs = Runs((*three(), run(1.0, 1, ttft=120), run(1.0, 2, ttft=90)))
    tpot = Sla.parse("p95_tpot_ms<=40").per_run
    bound = runs.find_bound(TTFT[0], tpot, 0.8)
    assert bound is not None
    found = Sla.parse(f"p95_ttft_ms<={bound},p95_tpot_ms<=40").per_run
    assert runs.chance(found) == pytest.approx(0.8, abs=1e-6)
    assert runs.find_bound(TTFT[0], Sla.parse("p95_tpot_ms<=5").per_run, 0.8) is None


def test_a_share_that_falls_with_slow_steps_is_a_constraint_like_others() -> None:
    runs = Runs(
        tuple(
            SimulatedRun(slowness=slowness, draw=0, metrics={"attainment": share})
            for slowness, share in ((-1.6, 1.0), (0.0, 0.98), (1.6, 0.9))
        )
    )
    assert runs.chance(Sla.parse("ttft:100,attainment>=0.94").per_run) == pytest.approx(
        0.788, abs=0.01
    )


def test_a_looser_bound_is_never_less_likely_though_one_draw_gains_most_by_it() -> None:
    # One draw is slow to answer and another slow to stream: bounds decide in other draws each.
    drawn = (run(0.8, 1, ttft=150), run(0.8, 2, ttft=60), run(0.8, 3, tpot=16), run(0.8, 4))
    runs = Runs((*three(), *drawn))
    bounds = [100 * 1.05**step for step in range(60)]
    chances = [
        runs.chance(Sla.parse(f"p95_ttft_ms<={bound},p95_tpot_ms<=20").per_run) for bound in bounds
    ]
    assert all(low <= high + 1e-9 for low, high in pairwise(chances))


def test_draws_that_are_not_known_yet_are_taken_to_have_all_room() -> None:
    known = Runs((*three(), run(0.8, 1, ttft=150), run(0.8, 2, ttft=130)))
    most = known.chance(BOTH, unseen=2)
    for ttft in (40, 90, 160):
        rest = (run(0.8, 3, ttft=ttft), run(0.8, 4, ttft=ttft))
        assert Runs((*known.runs, *rest)).chance(BOTH) <= most + 1e-9
