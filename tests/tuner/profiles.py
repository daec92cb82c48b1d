"""Profiles of a made-up machine whose physics is known, so that fits can be judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from engine.spec.model import DType, ModelConfig
from engine.spec.modes import BASE, Mode
from engine.spec.plan import parse_plan
from engine.spec.steps import StepSample, StepShape
from tests.tuner.worlds import SMALL
from tuner.profiling.profile import (
    AttentionTime,
    CollectiveTime,
    ElementwiseTime,
    GemmTime,
    PieceTime,
    Profile,
)
from tuner.spec.machine import Fingerprint
from tuner.step_model.operator_fit import operator_table, pairs
from tuner.step_model.operators import OperatorTable
from tuner.step_model.terms import StepTerms, TermCounter
from tuner.work.counts import CollectiveKind, layer_shapes, model_sizes

MACHINE = Fingerprint(cpu_model="made up", num_cores=2, torch_version="0", device="cpu")
PER_STEP_S = 3e-4
PER_LAYER_S = 4e-5
PLANS = ("tp=1", "tp=2", "sp=2,shift", "pp=2")

StepSeconds = Callable[[StepTerms, StepShape], float]


def true_seconds(terms: StepTerms, shape: StepShape) -> float:
    """What a step takes on the made-up machine: operators add up, plus fixed costs."""
    operators = (
        terms.gemm_s
        + terms.head_s
        + terms.prefill_attention_s
        + terms.decode_attention_s
        + terms.elementwise_s
        + terms.communication_s
    )
    return operators + PER_STEP_S * terms.steps + PER_LAYER_S * terms.layers


def operator_rows(model: ModelConfig = SMALL) -> Profile:
    """The operator part of a profile: 50 GFLOP/s, 10 GB/s, collectives of 5 us plus 4 GB/s."""
    gemms = [
        GemmTime(m=m, n=g.n, k=g.k, active_ranks=active, seconds=_gemm_s(m, g.n, g.k) * slow)
        for active, slow in ((1, 1.0), (2, 1.2))
        for degree in (1, 2)
        for g in layer_shapes(model, degree).all
        for m in (1, 4, 16, 64, 256, 1024)
    ]
    heads = [
        GemmTime(m=m, n=model.vocab_size // d, k=model.hidden_size, active_ranks=1,
                 seconds=_gemm_s(m, model.vocab_size // d, model.hidden_size))
        for d in (1, 2) for m in (1, 16, 64)
    ]  # fmt: skip
    attentions = []
    for num_seqs, query, context in (
        (1, 1, 64),
        (8, 1, 256),
        (32, 1, 512),
        (1, 64, 0),
        (1, 512, 512),
    ):
        row = AttentionTime(
            num_seqs=num_seqs, query=query, context=context, width=256, active_ranks=1, seconds=1.0
        )
        seconds = 1e-5 + 5e-6 * num_seqs + 8e-11 * pairs(row) * row.width
        attentions.append(
            AttentionTime(num_seqs=num_seqs, query=query, context=context, width=256,
                          active_ranks=1, seconds=seconds)
        )  # fmt: skip
    return Profile(
        fingerprint=MACHINE,
        model=model_sizes(model),
        dtype=DType.FLOAT32.value,
        gemms=(*gemms, *heads),
        attentions=tuple(attentions),
        elementwise=tuple(
            ElementwiseTime(tokens=n, width=768, active_ranks=1, seconds=2e-5 + 1e-9 * n * 768)
            for n in (1, 16, 128, 512)
        ),
        collectives=tuple(
            CollectiveTime(kind=kind, ranks=2, num_bytes=size, seconds=5e-6 + size / 4e9)
            for kind in CollectiveKind
            for size in (64, 8192, 131072, 2097152)
        ),
    )


def shapes(mode: Mode = BASE) -> list[StepShape]:
    """Decodes, prefills and mixed steps of many sizes."""
    decodes = [
        StepShape(mode=mode, num_seqs=n, num_decode_tokens=n, decode_context_tokens=n * context,
                  num_sampled=n)
        for n in (1, 2, 4, 8, 16, 32) for context in (64, 400)
    ]  # fmt: skip
    prefills = [
        StepShape(mode=mode, num_seqs=1, num_prefill_tokens=n, prefill_context_tokens=n,
                  prefill_attention_pairs=n * (n + 1) // 2, num_sampled=1)
        for n in (16, 64, 128, 256, 512)
    ]  # fmt: skip
    return decodes + prefills


def made_up_profile(
    *, seconds: StepSeconds = true_seconds, plans: tuple[str, ...] = PLANS, served: bool = True
) -> Profile:
    """Operators plus pieces (and a one-rank serving run 10 % slower than its pieces)."""
    profile = operator_rows()
    table = operator_table(profile)
    pieces = []
    for text in plans:
        plan = parse_plan(text).plan
        for depth in (plan.pp, 3 * plan.pp):
            counter = _counter(table, text, depth)
            for mode in plan.modes:
                for shape in shapes(mode):
                    taken = seconds(counter.step(shape), shape)
                    pieces.append(
                        PieceTime(plan=text, num_layers=depth, shape=shape, step_s=taken,
                                  communication_s=0.0, spread=0.0)
                    )  # fmt: skip
    counter = _counter(table, "tp=1", SMALL.num_layers)
    samples = [
        _sample(n, shape, 1.1 * seconds(counter.step(shape), shape))
        for n, shape in enumerate(shapes())
    ]
    return replace(profile, pieces=tuple(pieces), samples=tuple(samples) if served else ())


def _counter(table: OperatorTable, text: str, num_layers: int) -> TermCounter:
    plan = parse_plan(text).plan
    return TermCounter(
        table,
        model=replace(SMALL, num_layers=num_layers),
        plan=plan,
        dtype=DType.FLOAT32,
        active_ranks=plan.stage_size,
    )


def _sample(number: int, shape: StepShape, step_s: float) -> StepSample:
    return StepSample(
        step_id=number, plan="tp=1", replica=0, shape=shape, padded_tokens=shape.num_tokens,
        start_s=float(number), step_s=step_s, schedule_s=1e-4, input_s=0.0, forward_s=step_s,
        communication_s=0.0, sample_s=0.0, output_s=1e-4, kv_usage=0.5,
        bubble_s=2e-4,
    )  # fmt: skip


def _gemm_s(m: int, n: int, k: int) -> float:
    return max(2.0 * m * n * k / 50e9, 4.0 * n * k / 10e9) + 2e-6
