"""Which steps are captured as CUDA graphs, and the memory that the graphs keep; no torch."""

from __future__ import annotations

from engine.spec.activations import activation_bytes
from engine.spec.model import ModelConfig
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps

# The tables of the graphs hold no more blocks than this; a step that needs more runs without one.
MOST_TABLE_BLOCKS = 4 * 2**20
TABLE_ENTRY_BYTES = 4
# What the driver keeps of a launch in a graph: about 10 KB (NVIDIA/cccl#3768).
LAUNCH_BYTES = 10 * 2**10
# Of a layer: ten kernels, and with more ranks their collectives and the copies around these.
LAYER_LAUNCHES = 10
LAYER_LAUNCHES_AMONG_RANKS = 16


def graph_rows(most: int, multiple: int) -> tuple[int, ...]:
    """Numbers of tokens for which steps of up to ``most`` are captured, ascending, each a multiple
    of ``multiple``: 1, 2, 4, then in ever larger paces, so that from 8 on padding adds a quarter at
    most.
    """
    found: list[int] = []
    size = 1
    while size <= most:
        found.append(-(-size // multiple) * multiple)
        size += max(1, 2 ** (size.bit_length() - 1) // 4) if size >= 8 else size
    return tuple(sorted({rows for rows in found if rows <= most}))


def kinds(num_rows: int) -> tuple[bool, ...]:
    """The graphs of one size in one mode: whether each is for steps with longer runs of new tokens.
    One token is no run.
    """
    return (True, False) if num_rows > 1 else (False,)


def graph_bytes(model: ModelConfig, plan: ParallelPlan, most: int, *, num_bytes: int) -> int:
    """What the graphs of steps of up to ``most`` tokens keep on one rank, whose numbers have
    ``num_bytes``. An estimate: not compared with a device yet.

    The driver's part grows with the launches, torch's with the largest step, whose memory all
    graphs share, and with every graph's answer, which has memory of its own.
    """
    sizes = graph_rows(most, plan.sp)
    if not sizes:
        return 0
    per_layer = LAYER_LAUNCHES if plan.replica_size == 1 else LAYER_LAUNCHES_AMONG_RANKS
    layers = -(-model.num_layers // plan.pp)
    num_graphs = len(plan.modes) * sum(len(kinds(rows)) for rows in sizes)
    answer_rows = sum(
        len(kinds(rows)) * rows // plan.rung(mode).sp for rows in sizes for mode in plan.modes
    )
    largest = Caps(max_num_seqs=1, max_num_batched_tokens=sizes[-1])
    return (
        num_graphs * layers * per_layer * LAUNCH_BYTES
        + activation_bytes(model, plan, largest, num_bytes=num_bytes)
        + (answer_rows + sizes[-1]) * model.hidden_size * num_bytes
        + MOST_TABLE_BLOCKS * TABLE_ENTRY_BYTES
    )
