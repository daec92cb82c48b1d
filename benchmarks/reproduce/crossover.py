"""From how many tokens on a step is faster in base mode than in shift mode."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.reproduce.nodes import decode_step, device_seconds, get_node, prefill_step
from benchmarks.reproduce.tables import number, table
from engine.spec.modes import BASE, SHIFT
from engine.spec.plan import ParallelPlan
from tuner.described.node import Node
from tuner.spec.errors import TunerError

MODEL, PRECISION = "llama-3.3-70b", "fp8"
CONTEXT_TOKENS = 4096
LARGEST = 1 << 15
# Our own arithmetic on the paper's formulas, not its measurements: SP degree -> tokens.
DERIVED_NVLINK = {2: 275, 4: 450, 8: 650}
DERIVED_PCIE = "about 300 or lower"
LINKS = {"NVLink": "8xh200", "PCIe 5 class": "8xh200@pcie5"}
BACKENDS = ("gearshift", "arctic")


def find_crossover(node: Node, sp: int, *, is_decode: bool) -> int | None:
    """The smallest step in tokens from which base stays the faster; None when shift always is.

    Found on the device times of both modes, at growing sizes and then by bisection.
    """
    plan = ParallelPlan(sp=sp, shift=True)

    def is_base_faster(tokens: int) -> bool:
        shapes = (
            decode_step(tokens, CONTEXT_TOKENS, mode)
            if is_decode
            else prefill_step(1, tokens, mode)
            for mode in (BASE, SHIFT)
        )
        base_s, shift_s = (device_seconds(node, plan, shape) for shape in shapes)
        return base_s < shift_s

    high = LARGEST
    if not is_base_faster(high):
        return None
    # Downwards: small steps are noisy where products change kernels, the last change is meant.
    while high > 1 and is_base_faster(high // 2):
        high //= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_base_faster(middle) else (middle, high)
    return high


def crossover_sections() -> Iterator[str]:
    """The report's lines."""
    yield "## Crossover of base and shift, in tokens of a step"
    yield ""
    yield "Device times only; decode steps at 4,096 tokens of context, prefill of one prompt."
    yield "Derived: arithmetic on the paper's formulas, no measurement."
    yield ""
    rows: list[tuple[str, ...]] = []
    for link, hardware in LINKS.items():
        for backend in BACKENDS:
            try:
                node = get_node(hardware, MODEL, PRECISION, backend)
            except TunerError as error:
                rows.append((f"{link}, {backend}", "", f"not described ({error})", "", ""))
                continue
            rows += [_row(f"{link}, {backend}", link, node, sp) for sp in DERIVED_NVLINK]
    yield from table(("link, launches", "SP", "decode steps", "prefill steps", "derived"), rows)


def _row(name: str, link: str, node: Node, sp: int) -> tuple[str, ...]:
    found = [find_crossover(node, sp, is_decode=is_decode) for is_decode in (True, False)]
    derived = number(DERIVED_NVLINK[sp]) if link == "NVLink" else DERIVED_PCIE
    cells = [f"{tokens:,}" if tokens else "shift always" for tokens in found]
    return (name, str(sp), *cells, derived)
