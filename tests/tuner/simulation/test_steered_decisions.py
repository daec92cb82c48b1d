"""Hot settings that change on the way: the simulator and the live engine still take equal steps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from engine.engine import Engine
from engine.models.create import create_model
from engine.replica.replica import Replica
from engine.replica.stream import OnOutput
from engine.spec.request import Request
from engine.spec.settings import Caps, Order, Settings
from tests.tuner.simulation.test_simulated_decisions import (
    PLANS,
    ArbitraryTimer,
    arrivals,
    assert_same,
)
from tests.tuner.simulation.virtual_engine import Served, World, serve, simulated
from tuner.simulation.steering import PlannedChanges
from tuner.workload.workload import Arrival

# A request that no engine of these worlds takes marks the time of a change.
TOO_LONG = 100


@dataclass(frozen=True, kw_only=True)
class SteeredWorld:
    """A world, and the settings that each marker among its arrivals puts in force."""

    world: World
    changes: dict[str, Settings]

    @property
    def planned(self) -> PlannedChanges:
        at_s = {str(n): a.arrival_s for n, a in enumerate(self.world.arrivals)}
        return PlannedChanges([(at_s[name], found) for name, found in self.changes.items()])


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "model"
    create_model(folder, preset="tiny", seed=0)
    return folder


@st.composite
def steered_worlds(draw: st.DrawFn) -> SteeredWorld:
    plan = draw(st.sampled_from(PLANS))
    most = Caps(
        max_num_seqs=draw(st.integers(1, 6)), max_num_batched_tokens=draw(st.integers(2, 64))
    )
    at_s, found, changes = 0.0, [], {}
    for gap_s, given_tokens, wanted in draw(arrivals):
        at_s += gap_s
        found.append(Arrival(arrival_s=at_s, input_tokens=given_tokens, output_tokens=wanted))
        if draw(st.booleans()):
            at_s += draw(st.floats(1e-6, 0.2))
            changes[str(len(found))] = Settings(
                plan=plan,
                threshold_tokens=draw(st.integers(1, 32)),
                caps=Caps(
                    max_num_seqs=draw(st.integers(1, most.max_num_seqs)),
                    max_num_batched_tokens=draw(st.integers(2, most.max_num_batched_tokens)),
                ),
            )
            found.append(Arrival(arrival_s=at_s, input_tokens=TOO_LONG, output_tokens=1))
    world = World(
        plan=plan,
        caps=most,
        timer=ArbitraryTimer(
            seed=draw(st.integers(0, 1000)),
            stages=plan.pp,
            host_s=draw(st.sampled_from((0.0, 0.0013))),
        ),
        arrivals=tuple(found),
        threshold_tokens=draw(st.integers(1, 32)),
        order=Order.FCFS,
        overlap=False,
        num_kv_blocks=draw(st.integers(20, 60)),
        block_size=4,
        max_model_len=80,
    )
    return SteeredWorld(world=world, changes=changes)


def live(steered: SteeredWorld, model_dir: Path) -> Served:
    """The engine is told of a change when its marker comes, as another thread would tell it."""
    replicas: list[Replica] = []
    submit, launch = Engine.submit, Replica.launch

    def submit_or_change(engine: Engine, request: Request, on_output: OnOutput) -> None:
        if (wanted := steered.changes.get(request.request_id)) is not None:

            def obey() -> None:
                replicas[-1].set_hot(wanted)

            replicas[-1]._mailbox.post(obey)
        submit(engine, request, on_output)

    def launch_known(replica: Replica) -> None:
        replicas.append(replica)
        launch(replica)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "submit", submit_or_change)
        patch.setattr(Replica, "launch", launch_known)
        return serve(steered.world, model_dir)


@hypothesis_settings(max_examples=60, deadline=None)
@given(steered=steered_worlds())
def test_hot_changes_on_the_way_are_obeyed_at_the_same_step(
    steered: SteeredWorld, model_dir: Path
) -> None:
    assert_same(live(steered, model_dir), simulated(steered.world, model_dir, steered.planned))


def test_the_changes_of_these_worlds_matter(model_dir: Path) -> None:
    """Otherwise the property above would hold of a simulator that ignores them."""
    arrivals = [Arrival(arrival_s=0.01 * n, input_tokens=30, output_tokens=15) for n in range(6)]
    arrivals.insert(3, Arrival(arrival_s=0.025, input_tokens=TOO_LONG, output_tokens=1))
    plan = PLANS[3]
    world = World(
        plan=plan,
        caps=Caps(max_num_seqs=6, max_num_batched_tokens=64),
        timer=ArbitraryTimer(seed=1, stages=1),
        arrivals=tuple(arrivals),
        threshold_tokens=4,
        order=Order.FCFS,
        overlap=False,
        num_kv_blocks=60,
        block_size=4,
        max_model_len=80,
    )
    caps = Caps(max_num_seqs=2, max_num_batched_tokens=8)
    changed = SteeredWorld(
        world=world, changes={"3": Settings(plan=plan, threshold_tokens=16, caps=caps)}
    )
    found = simulated(world, model_dir, changed.planned)
    assert_same(live(changed, model_dir), found)
    assert simulated(world, model_dir, PlannedChanges([])).decisions != found.decisions
