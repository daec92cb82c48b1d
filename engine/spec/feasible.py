"""Which plans a model can run, and why it cannot run the others; no torch."""

from __future__ import annotations

from engine.spec.errors import PlanError
from engine.spec.model import ModelConfig
from engine.spec.plan import ParallelPlan
from engine.spec.quantisation import LEAST_COLUMNS


def infeasible_reasons(plan: ParallelPlan, model: ModelConfig) -> list[str]:
    """Why ``model`` cannot run under ``plan``, each with the numbers; empty when it can.

    The divisibility rules are those of ``docs/decisions/0001-one-weight-copy.md``.
    """
    stage, tp, sp = plan.stage_size, plan.tp, plan.sp
    heads, kv_heads, ffn = model.num_heads, model.num_kv_heads, model.ffn_size
    reasons = []
    if heads % stage:
        reasons.append(f"{heads} query heads do not divide by sp*tp = {sp}*{tp} = {stage}")
    if kv_heads % tp and tp % kv_heads:
        reasons.append(f"{kv_heads} KV heads and tp={tp}: neither divides the other")
    else:
        per_tp = max(1, kv_heads // tp)
        if per_tp % sp and sp % per_tp:
            reasons.append(
                f"{per_tp} KV heads per tensor rank and sp={sp}: neither divides the other"
            )
    if ffn % stage:
        reasons.append(f"FFN size {ffn} does not divide by sp*tp = {sp}*{tp} = {stage}")
    if plan.pp > model.num_layers:
        reasons.append(f"pp={plan.pp} stages for {model.num_layers} layers: a stage would be empty")
    return reasons + _unaligned_cuts(plan, model)


def _unaligned_cuts(plan: ParallelPlan, model: ModelConfig) -> list[str]:
    """Cuts of quantised weights that leave too few columns to a scale."""
    quantisation = model.quantisation
    if quantisation is None or quantisation.block is None or not quantisation.is_kept:
        return []
    reasons = []
    for module, width in model.column_cuts(plan).items():
        shared = quantisation.columns_per_scale(width)
        if shared is not None and shared < LEAST_COLUMNS:
            reasons.append(
                f"{module} is quantised in blocks of {quantisation.block[1]} columns and cut into "
                f"pieces of {width}: only runs of {shared} columns would share a scale, the least "
                f"is {LEAST_COLUMNS}; use fewer ranks, or a checkpoint with a scale per channel"
            )
    return reasons


def check_plan(plan: ParallelPlan, model: ModelConfig) -> None:
    """Refuse a plan this model cannot run, before any process starts.

    Raises:
        PlanError: with every reason and its numbers.
    """
    if reasons := infeasible_reasons(plan, model):
        raise PlanError(f"plan {plan} cannot run this model: " + "; ".join(reasons))


def list_plans(num_devices: int, *, least_devices: int = 1) -> list[ParallelPlan]:
    """Every plan on ``least_devices``..``num_devices`` devices, Shift on and off, sorted by size.

    Not every model can run each of them: see ``infeasible_reasons``.
    """
    plans = [
        ParallelPlan(dp=dp, pp=pp, sp=sp, tp=tp, shift=shift)
        for dp in range(1, num_devices + 1)
        for pp in range(1, num_devices // dp + 1)
        for sp in range(1, num_devices // (dp * pp) + 1)
        for tp in range(1, num_devices // (dp * pp * sp) + 1)
        if dp * pp * sp * tp >= least_devices
        for shift in ((False, True) if sp > 1 else (False,))
    ]
    return sorted(plans, key=lambda plan: (plan.world_size, plan))
