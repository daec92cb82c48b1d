"""How much faster TP8 is (arXiv 2603.05692), on the paper's node and on others.

The paper's node is known from public digests of it, written by machines, which agree: Llama-3.1-70B
in FP8 on eight MI325X joined by a full mesh, in the authors' own roofline simulator (405B in four
bits on MI355X). What they say of links and batches is in ``DIGEST_*``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

from benchmarks.reproduce.nodes import OLDER_VLLM, device_seconds, get_node, prefill_step
from benchmarks.reproduce.static_batch import StaticLoad, communication_share, static_latency
from benchmarks.reproduce.tables import Cell, Claim, claim_table, number, table
from engine.spec.model import DType
from engine.spec.plan import ParallelPlan
from tuner.described.node import Node
from tuner.hardware.collectives import CollectiveTimes
from tuner.hardware.device import load_device
from tuner.hardware.links import Topology
from tuner.work.counts import Collective, CollectiveKind
from tuner.work.models import load_model

MODEL, BIG_MODEL = "llama-3.1-70b", "llama-3.1-405b"
BACKEND = OLDER_VLLM
LIMIT = 0.10
LONG = StaticLoad(batch=256, input_tokens=9092, output_tokens=208)
DEGREES = (2, 4, 8)
# (phase, slower degree) -> how many times faster TP8 is.
PUBLISHED_RATIOS = {
    ("prefill", 4): 1.87,
    ("decode", 4): 1.67,
    ("prefill", 2): 3.61,
    ("decode", 2): 3.01,
}
DIGEST_SHARE, SHARE_MARGIN = 0.30, 0.05
DIGEST_SPEEDS_GB, DIGEST_SAVING = (256, 608), 0.34
# Devices -> largest batch of the 405B model on them, in powers of two; bytes of one MI355X.
DIGEST_BATCHES = {1: 32, 8: 512}
MI355X_BYTES = 288e9
BIG_REQUEST_TOKENS = 9428 + 684
MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class RatioCase:
    """One node and number format; ``is_switched``: its mesh replaced by a switch of its speed."""

    hardware: str
    precision: str
    kv_bytes: int = 2
    is_switched: bool = False

    @property
    def node(self) -> Node:
        node = get_node(self.hardware, MODEL, self.precision, BACKEND)
        return _switched(node) if self.is_switched else node

    def __str__(self) -> str:
        kv = ", KV in fp8" if self.kv_bytes == 1 else ""
        return f"{self.hardware} {self.precision}{kv}{', by a switch' * self.is_switched}"


PAPER = RatioCase(hardware="8xmi325x", precision="fp8", kv_bytes=1)
SWITCHED = replace(PAPER, is_switched=True)
CASES = (
    PAPER,
    RatioCase(hardware="8xmi325x", precision="fp8"),
    RatioCase(hardware="8xmi325x", precision="bf16"),
    SWITCHED,
    RatioCase(hardware="8xh200", precision="bf16"),
    RatioCase(hardware="8xh200", precision="fp8"),
    RatioCase(hardware="8xh100", precision="bf16"),
    RatioCase(hardware="8xh100", precision="fp8"),
    RatioCase(hardware="8xa100", precision="bf16"),
)


@cache
def predict_ratios(case: RatioCase) -> tuple[Cell, ...]:
    """The four published ratios as ``case`` gives them."""
    load = replace(LONG, kv_bytes=case.kv_bytes)
    latency = {t: static_latency(case.node, ParallelPlan(tp=t), load) for t in DEGREES}
    seconds = {
        (phase, t): one.prefill_s if phase == "prefill" else one.decode_s
        for t, one in latency.items()
        for phase in ("prefill", "decode")
    }
    return tuple(
        Cell(
            what=f"{phase} TP8 over TP{t}",
            published=published,
            predicted=seconds[phase, t] / seconds[phase, 8],
        )
        for (phase, t), published in PUBLISHED_RATIOS.items()
    )


def ratio_sections(cases: tuple[RatioCase, ...]) -> Iterator[str]:
    """The report's lines: the ratios of ``cases``, why they are so, and what else is known."""
    yield "## How much faster TP8 is: batch 256, 9,092 in / 208 out"
    yield ""
    yield "Public digests of the paper (written by machines; its text was not at hand) name its"
    yield "node: 70B in FP8 on eight MI325X joined by a full mesh, in the authors' own roofline"
    yield f"simulator. It is the first row, `{PAPER}`; MI325X is described from its"
    yield "data sheet. Collectives are waited for. The other rows show what number format and"
    yield "links change."
    yield ""
    head = [f"{phase} TP8/TP{t}" for phase, t in PUBLISHED_RATIOS]
    rows = [_ratio_row(case) for case in cases]
    rows.append(("published", *(f"{v:.2f}" for v in PUBLISHED_RATIOS.values()), "", ""))
    yield from table(("", *head, f"within {LIMIT:.0%}", "all-reduces at TP2, TP4, TP8"), rows)
    yield from _verdict(cases)
    yield from _bandwidths()
    yield from _digest_claims()


def _ratio_row(case: RatioCase) -> tuple[str, ...]:
    cells = predict_ratios(case)
    return (
        str(case),
        *(f"{cell.predicted:.2f} ({cell.error:+.0%})" for cell in cells),
        f"{_num_within(cells)} of {len(cells)}",
        ", ".join(f"{share:.0%}" for share in _shares(case)),
    )


def _num_within(cells: tuple[Cell, ...]) -> int:
    return sum(abs(cell.error) <= LIMIT for cell in cells)


def _shares(case: RatioCase) -> list[float]:
    """What all-reduces take of prefill at each degree."""
    return [communication_share(case.node, ParallelPlan(tp=t), LONG.input_tokens) for t in DEGREES]


def _verdict(cases: tuple[RatioCase, ...]) -> Iterator[str]:
    own = predict_ratios(PAPER)
    worst = max(own, key=lambda cell: abs(cell.error))
    yield f"On the paper's node {_num_within(own)} of {len(own)} ratios are within {LIMIT:.0%};"
    yield f"the worst is {worst.what}, {worst.error:+.1%}."
    plain = predict_ratios(replace(PAPER, kv_bytes=2))
    yield f"With the KV cache in two bytes {_num_within(plain)} of {len(plain)} are."
    meshed, switched = (_slower_pair(case) for case in (PAPER, SWITCHED))
    yield f"In the mesh TP2's all-reduces take {meshed:.1f} times as long as TP8's, since two"
    yield "devices have one wire of seven between them; through a switch of the same speed"
    yield f"{switched:.2f} times as long, and prefill would scale {_errors(SWITCHED, 'prefill')}."
    if others := [case for case in cases if case.node.hardware.device.link.measured_on]:
        every = [cell for case in others for cell in predict_ratios(case)]
        yield f"Nodes with NVSwitch are not the paper's: {_num_within(tuple(every))} of"
        yield f"{len(every)} of their ratios are within {LIMIT:.0%}, prefill"
        yield f"{_range(every, 'prefill')}, decode {_range(every, 'decode')}."
    yield ""


def _slower_pair(case: RatioCase) -> float:
    device = case.node.hardware.device
    two, eight = (_all_reduce_s(device.name, case.is_switched, n, 1024 * MIB) for n in (2, 8))
    return two / eight


def _errors(case: RatioCase, phase: str) -> str:
    cells = [cell for cell in predict_ratios(case) if cell.what.startswith(phase)]
    return " and ".join(f"{c.predicted:.2f} times ({c.error:+.0%})" for c in cells)


def _range(cells: list[Cell], phase: str) -> str:
    errors = [cell.error for cell in cells if cell.what.startswith(phase)]
    return f"{min(errors):+.0%} to {max(errors):+.0%}"


# -- links ---------------------------------------------------------------------------------------


def _bandwidths() -> Iterator[str]:
    yield "Bus bandwidth of all-reduces in these rows, GB/s, of one step of 8,192 tokens (128 MiB)"
    yield "and of one pass of eight prompts (about 1 GiB): `2 (n-1)/n * bytes / seconds`."
    yield ""
    names = sorted({load_device(case.hardware.split("x", 1)[1]).name for case in CASES})
    rows = []
    for name in names:
        device = load_device(name)
        how = "measured" if device.has_measured_link else "law"
        cells = [
            f"{2 * (n - 1) / n * size / _all_reduce_s(name, False, n, size) / 1e9:.0f}"
            for size in (128 * MIB, 1024 * MIB)
            for n in DEGREES
        ]
        rows.append((f"{name}, {device.link.name}, {how}", *cells))
    head = [f"{size}, {n} ranks" for size in ("128 MiB", "1 GiB") for n in DEGREES]
    yield from table(("", *head), rows)


def _all_reduce_s(device_name: str, is_switched: bool, ranks: int, num_bytes: int) -> float:
    device = load_device(device_name)
    if is_switched:
        device = replace(device, link=replace(device.link, topology=Topology.SWITCH))
    collective = Collective(kind=CollectiveKind.ALL_REDUCE, ranks=ranks, num_bytes=float(num_bytes))
    times = CollectiveTimes(device, device.curves, ParallelPlan(tp=ranks), "graph")
    return times.seconds(collective)


def _switched(node: Node) -> Node:
    device = node.hardware.device
    link = replace(device.link, topology=Topology.SWITCH)
    return replace(node, hardware=replace(node.hardware, device=replace(device, link=link)))


# -- what else digests of the paper say ----------------------------------------------------------


def _digest_claims() -> Iterator[str]:
    shares, slow = _shares(PAPER), _shares(replace(PAPER, precision="bf16"))
    savings = {t: _saving(t) for t in DEGREES}
    one, two = _rooms(1), _rooms(2)
    batches = {n: _floor_power(room) for n, room in one.items()}
    yield from claim_table(
        [
            Claim(
                what="all-reduces take a share of TTFT that hardly depends on the degree",
                found=f"{min(shares):.0%} to {max(shares):.0%}",
                holds=max(shares) - min(shares) <= SHARE_MARGIN,
            ),
            Claim(
                what=f"that share is about {DIGEST_SHARE:.0%}",
                found=f"{min(shares):.0%} to {max(shares):.0%} (in bf16 {min(slow):.0%} to "
                f"{max(slow):.0%})",
                holds=all(abs(share - DIGEST_SHARE) <= SHARE_MARGIN for share in shares),
            ),
            Claim(
                what=f"links of {DIGEST_SPEEDS_GB[1]} instead of {DIGEST_SPEEDS_GB[0]} GB/s take "
                f"{DIGEST_SAVING:.0%} off TTFT",
                found=", ".join(f"TP{t}: {saving:.0%}" for t, saving in savings.items()),
                holds=all(abs(v / DIGEST_SAVING - 1) <= LIMIT for v in savings.values()),
            ),
            Claim(
                what="405B in four bits: batches of up to "
                + " and ".join(f"{b} on {n}" for n, b in DIGEST_BATCHES.items())
                + " MI355X",
                found=f"KV in one byte: room for {_join(one)}; in two: {_join(two)}",
                holds=batches == DIGEST_BATCHES,
            ),
        ],
        who="digests of the paper say",
    )
    yield "The format of its KV cache is not told; the last line is why one byte is taken for it."
    yield ""


def _saving(tp: int) -> float:
    slow, fast = (
        device_seconds(
            get_node(f"{PAPER.hardware}@{speed}gb/s", MODEL, PAPER.precision, BACKEND),
            ParallelPlan(tp=tp),
            prefill_step(1, LONG.input_tokens),
        )
        for speed in DIGEST_SPEEDS_GB
    )
    return 1 - fast / slow


def _rooms(kv_bytes: int) -> dict[int, int]:
    """Requests of the 405B model that devices have room for beside its weights in four bits."""
    model, plan, dtype = load_model(BIG_MODEL), ParallelPlan(), DType.BFLOAT16
    weights = model.weight_bytes_per_rank(plan, dtype) / dtype.num_bytes / 2
    token = model.kv_bytes_per_token(plan, dtype) * kv_bytes / dtype.num_bytes
    return {
        n: int((n * MI355X_BYTES - weights) / (token * BIG_REQUEST_TOKENS)) for n in DIGEST_BATCHES
    }


def _floor_power(value: int) -> int:
    return 1 << (value.bit_length() - 1) if value else 0


def _join(rooms: dict[int, int]) -> str:
    return " and ".join(number(room) for room in rooms.values())
