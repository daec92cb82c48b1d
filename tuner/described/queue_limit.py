"""How many queued prompt tokens a deployment can prefill within its TTFT bound."""

from __future__ import annotations

import math

from engine.spec.settings import Settings
from engine.spec.steps import StepShape
from policies.constraint import Metric
from policies.sla import Sla
from tuner.described.node import Node
from tuner.workload.workload import Workload


def queued_tokens(node: Node, settings: Settings, workload: Workload, sla: Sla) -> int | None:
    """TTFT bound x prefill rate of all replicas, at least the longest prompt; None without a bound.

    The rate is that of steps full of the workload's mean prompts: nothing decodes beside them.
    """
    bounds_ms = [each.bound for each in sla.constraints if each.metric is Metric.TTFT_MS]
    if not bounds_ms:
        return None
    plan, num_tokens = settings.plan, settings.caps.max_num_batched_tokens
    prompt = min(num_tokens, max(1, round(float(workload.input_tokens.mean()))))
    shapes = [
        StepShape(
            mode=mode,
            num_seqs=math.ceil(num_tokens / prompt),
            num_prefill_tokens=num_tokens,
            prefill_context_tokens=num_tokens,
            prefill_attention_pairs=num_tokens * (prompt + 1) // 2,
            num_sampled=1,
        )
        for mode in settings.modes_in_use
    ]
    timer = node.timer(plan)
    step_s = min(max(timer.stage_seconds(shape)) for shape in shapes)
    tokens = min(bounds_ms) / 1e3 * plan.dp * num_tokens / step_s
    return max(int(tokens), int(workload.input_tokens.max()))
