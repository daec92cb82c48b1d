"""How long a reshape keeps the ranks away: processes, weights, warm-up, graphs.

A reshape of this engine keeps every accepted request: its ranks are replaced, and sequences are
computed again from their tokens so far, which the simulator does in full. What is estimated here
is only the time in which no rank runs.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.spec.plan import ParallelPlan
from tuner.described.node import Node
from tuner.hardware import Launch
from tuner.simulation.steering import ReshapeSeconds
from tuner.spec.errors import TunerError


@dataclass(frozen=True, kw_only=True)
class ReshapeTimes:
    """What starting ranks takes on one kind of machine, and where the figures come from.

    ``process_s``: from the last step of the old ranks until new processes have joined their
    group. Weights come from host memory or a disk cache: ``rank_bytes_per_s`` for one rank,
    ``node_bytes_per_s`` for all ranks of a node together. ``capture_s``: graphs of one mode.

    Raises:
        TunerError: a negative time or a bandwidth of 0.
    """

    source: str
    is_measured: bool
    process_s: float
    rank_bytes_per_s: float
    node_bytes_per_s: float
    warm_up_s: float = 0.0
    capture_s: float = 0.0

    def __post_init__(self) -> None:
        if min(self.process_s, self.warm_up_s, self.capture_s) < 0:
            raise TunerError(f"reshape times {self}: a time is below 0")
        if min(self.rank_bytes_per_s, self.node_bytes_per_s) <= 0:
            raise TunerError(f"reshape times {self}: a bandwidth must be above 0")

    def cost(
        self, *, weight_bytes_per_rank: float, num_ranks: int, num_captures: int
    ) -> ReshapeCost:
        """The parts of one reshape to ``num_ranks`` ranks that start side by side on a node."""
        per_rank_s = weight_bytes_per_rank / self.rank_bytes_per_s
        together_s = weight_bytes_per_rank * num_ranks / self.node_bytes_per_s
        return ReshapeCost(
            process_s=self.process_s,
            load_s=max(per_rank_s, together_s),
            warm_up_s=self.warm_up_s,
            capture_s=self.capture_s * num_captures,
        )


@dataclass(frozen=True, kw_only=True)
class ReshapeCost:
    """Seconds without ranks, by what they wait for; the parts follow each other."""

    process_s: float
    load_s: float
    warm_up_s: float
    capture_s: float

    @property
    def seconds(self) -> float:
        return self.process_s + self.load_s + self.warm_up_s + self.capture_s


# Measured with a tiny checkpoint on two CPU ranks and a spare process. Loading its weights takes no
# time, so the bandwidths are not measured: they are those of a memory copy.
CPU_RANKS = ReshapeTimes(
    source="kill campaign of 2026-11-21: p50 of 0.17 and 0.27 s from a rank's death to the end of "
    "the first step after it (two CPU ranks, one spare process); bandwidths are guesses",
    is_measured=True,
    process_s=0.22,
    rank_bytes_per_s=2e9,
    node_bytes_per_s=4e9,
)
# This engine keeps warmed-up processes; only a device's context and its group are made anew.
GEARSHIFT_ON_GPU = ReshapeTimes(
    source="guess: spare processes as on CPU, 5 s for context and communicator; weights from the "
    "page cache at 5 GB/s per rank and 40 GB/s per node, 17 s of graphs per mode (both as in a "
    "start-up log of vLLM 0.9: vllm-project/vllm#20264)",
    is_measured=False,
    process_s=5.0,
    rank_bytes_per_s=5e9,
    node_bytes_per_s=40e9,
    warm_up_s=3.0,
    capture_s=17.0,
)
# Other engines end and start as a whole. We assume that they would keep their requests.
OTHERS_ON_GPU = ReshapeTimes(
    source="guess: a whole start; about 25 s for process, imports and communicator, 8 s to read "
    "compiled kernels, 17 s of graphs (start-up log of vLLM 0.9: vllm-project/vllm#20264)",
    is_measured=False,
    process_s=25.0,
    rank_bytes_per_s=5e9,
    node_bytes_per_s=40e9,
    warm_up_s=8.0,
    capture_s=17.0,
)


def reshape_times(backend: str) -> ReshapeTimes:
    """The figures for ``backend`` on GPUs."""
    return GEARSHIFT_ON_GPU if backend == "gearshift" else OTHERS_ON_GPU


def reshape_cost(node: Node, plan: ParallelPlan, times: ReshapeTimes | None = None) -> ReshapeCost:
    """What a reshape of ``node`` to ``plan`` costs; ``times``: other figures than its backend's.

    Raises:
        PlanError: the model cannot run under the plan.
    """
    backend = node.backend
    launches = [backend.launch, backend.shift_launch] if plan.shift else [backend.launch]
    return (times or reshape_times(backend.name)).cost(
        weight_bytes_per_rank=node.memory(plan).weight_bytes,
        num_ranks=min(plan.world_size, node.hardware.device.devices_per_node),
        num_captures=launches.count(Launch.GRAPH),
    )


def reshape_seconds(node: Node, times: ReshapeTimes | None = None) -> ReshapeSeconds:
    """The cost of a reshape to a plan, as a steering wants it."""
    return lambda plan: reshape_cost(node, plan, times).seconds
