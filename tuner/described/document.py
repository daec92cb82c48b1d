"""The ``simulate --json`` document: the numbers, and everything needed to repeat them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

from engine.spec.model import ModelConfig
from engine.spec.plan import ParallelPlan, shift_warning
from engine.spec.settings import Caps, Settings
from policies.attainment import judge
from policies.points import Estimate, estimates_to_json
from policies.report import finite, flat_metrics, measurement_json, sla_json
from policies.sla import Sla
from tuner.described.node import Node
from tuner.hardware import KvFormat, MemoryEstimate, Precision
from tuner.hardware.block_scaled import BLOCK
from tuner.hardware.precision import INT4_GROUP
from tuner.simulation.simulate import OnProgress, SimulationResult, no_progress
from tuner.simulation.timeline import (
    StepLine,
    Timeline,
    build_step_line,
    build_timeline,
    peak_active,
)
from tuner.workload.workload import Workload

SCHEMA = "simulation/v1"
# The same run with all step times multiplied by a number.
ScaledRun = Callable[[float, OnProgress], SimulationResult]


def simulation_json(
    result: SimulationResult,
    *,
    sla: Sla | None,
    settings: Settings,
    workload: Workload,
    seed: int,
    origin: dict[str, Any],
    intervals: Mapping[str, Estimate] | None = None,
    energy: dict[str, Any] | None = None,
    has_prefix_cache: bool = False,
    warnings: tuple[str, ...] = (),
    title: str,
) -> dict[str, Any]:
    """One run as a JSON value without wall times: equal inputs give equal bytes.

    ``origin`` says where step times and memory come from (:func:`node_json`).
    """
    return {
        "schema": SCHEMA,
        "title": title,
        "gearshift": version("gearshift"),
        **measurement_json(result.measurement, sla),
        "sla": sla_json(sla, judge(sla, result.measurement)) if sla else None,
        "intervals": estimates_to_json(intervals) if intervals else None,
        "admission": admission_json(result, settings, sla),
        "counts": counts_json(result),
        "prefix_cache": {
            "enabled": has_prefix_cache,
            "query_tokens": result.counts.prefix_queries,
            "hit_tokens": result.counts.prefix_hits,
        },
        "energy": energy,
        "peak_requests": peak_active(result.measurement),
        "timeline": timeline_json(result),
        "settings": settings.to_json(),
        "seed": seed,
        "workload": workload.describe(),
        **origin,
        "warnings": list(warnings),
    }


def admission_json(
    result: SimulationResult, settings: Settings, sla: Sla | None
) -> dict[str, Any] | None:
    """Requests that were turned away, and how those let in did; None: all are let in."""
    admission = settings.admission
    if admission is None:
        return None
    report = judge(sla, result.admitted) if sla else None
    return {
        **admission.to_json(),
        "refused": len(result.turned_away),
        "admitted_attainment": report.attainment if report else None,
    }


def node_json(node: Node, settings: Settings, model: str) -> dict[str, Any]:
    """Model, hardware, backend (with their versions), memory and KV capacity of a plan."""
    device, backend = node.hardware.device, node.backend
    return {
        "model": {"name": model, **model_json(node.model)},
        "dtype": node.precision.value,
        "hardware": {
            "name": str(node.hardware),
            "device": device.name,
            "version": device.version,
            "calibration": device.calibration,
            "source": device.source,
            "interval": device.interval_for(node.precision),
        },
        "backend": {
            "name": backend.name,
            "version": backend.version,
            "release": backend.release,
            "changed": list(backend.changed),
            "choice": backend.choice,
            "source": backend.source,
            "interval": backend.interval,
        },
        "step_interval": node.interval,
        "memory": memory_json(node.memory(settings.plan, caps=settings.caps), node.block_size),
    }


def model_json(model: ModelConfig) -> dict[str, Any]:
    """The shape that step times and memory depend on."""
    return {
        "num_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "ffn_size": model.ffn_size,
        "num_heads": model.num_heads,
        "num_kv_heads": model.num_kv_heads,
        "head_dim": model.head_dim,
        "vocab_size": model.vocab_size,
        "num_params": model.num_params,
    }


def memory_json(memory: MemoryEstimate, block_size: int) -> dict[str, Any]:
    """Bytes of the fullest rank; ``kv_tokens`` is what one replica can hold."""
    return {
        "usable_bytes": int(memory.usable_bytes),
        "weight_bytes_per_rank": memory.weight_bytes,
        "activation_bytes_per_rank": memory.activation_bytes,
        "runtime_bytes_per_rank": memory.runtime_bytes,
        "kv_bytes_per_rank": max(0, int(memory.kv_bytes)),
        "kv_bytes_per_token": memory.kv_bytes_per_token,
        "kv_tokens": memory.kv_tokens,
        "block_size": block_size,
        "num_kv_blocks": memory.kv_tokens // block_size,
    }


def counts_json(result: SimulationResult) -> dict[str, Any]:
    """Steps and busy seconds by mode, and what the scheduler had to do."""
    counts = result.counts
    return {
        "steps": dict(counts.steps),
        "step_seconds": dict(counts.step_seconds),
        "mode_switches": counts.mode_switches,
        "decode_tokens_in_base": counts.decode_tokens_in_base,
        "preemptions": counts.preemptions,
    }


def timeline_json(result: SimulationResult) -> dict[str, Any]:
    """Load, latencies and the modes of steps over time."""
    line, steps = timelines(result)
    return {**line.to_json(), **steps.to_json()}


def timelines(result: SimulationResult) -> tuple[Timeline, StepLine]:
    """What requests saw and what steps did, in the same bins."""
    line = build_timeline(result.measurement)
    start_s = min((t.scheduled_s for t in result.measurement.timings), default=0.0)
    return line, build_step_line(result.segments, line, start_s=start_s)


def node_warnings(node: Node, settings: Settings, workload: Workload) -> tuple[str, ...]:
    """What a reader has to know before believing a simulation of described hardware."""
    plan = settings.plan
    found = [*workload.warnings, *node.doubts]
    if node.backend.kv_cache_dtype is not KvFormat.AUTO:
        found.append(
            "attention over keys and values in fp8 was not measured: it is taken to read half the "
            "bytes at the same share of the bandwidth"
        )
    if (unaligned := _unaligned(node, plan)) is not None:
        found.append(unaligned)
    idle = node.hardware.count - plan.world_size
    if idle > 0:
        times = node.hardware.count // plan.replica_size
        more = f"; dp={times} would use {times * plan.replica_size}" if times > plan.dp else ""
        found.append(
            f"plan {plan} uses {plan.world_size} of {node.hardware.count} devices: the other "
            f"{idle} stand idle, because replicas are not added automatically{more}"
        )
    caps: Caps = settings.caps
    if (low := shift_warning(plan, settings.largest_below_base, caps.max_num_seqs)) is not None:
        found.append(low)
    room = min(node.context_tokens, node.num_kv_blocks(plan, settings.caps) * node.block_size)
    too_long = int((workload.input_tokens + workload.output_tokens > room).sum())
    if too_long:
        found.append(
            f"{too_long} of {len(workload)} requests are longer than {room} tokens (context or KV "
            "cache) and are errors"
        )
    return tuple(found)


def _unaligned(node: Node, plan: ParallelPlan) -> str | None:
    """Why a checkpoint with int4 or block-scaled weights may not start under ``plan``: in the
    products that end attention and FFN, a rank's rows must be whole groups."""
    group = {Precision.INT4: INT4_GROUP, Precision.FP8_BLOCK: BLOCK}.get(node.precision)
    if group is None:
        return None
    model = node.model
    degrees = [plan.tp, *([plan.stage_size] if plan.shift else [])]
    for part, rows in (("attention", model.q_size), ("the FFN", model.ffn_size)):
        for degree in degrees:
            if rows // degree % group:
                kind = node.precision
                return (
                    f"{rows} rows of {part} cut in {degree} are no whole groups of {group}: "
                    f"serving systems refuse that, unless the {kind} checkpoint was padded"
                )
    return None


def with_interval(
    result: SimulationResult,
    run: ScaledRun,
    sla: Sla | None,
    *,
    interval: float,
    on_progress: OnProgress = no_progress,
) -> dict[str, Estimate]:
    """Metrics of ``result``, with an interval from two more runs in which all steps take longer,
    and shorter, by ``interval`` (a log ratio; it holds the truth with 90 % probability).
    """
    scales = (math.exp(interval), math.exp(-interval))
    others = [run(scale, on_progress) for scale in scales]
    return estimates_of([flat_metrics(r.measurement, sla) for r in (result, *others)])


def estimates_of(runs: list[dict[str, float]]) -> dict[str, Estimate]:
    """The first run's numbers; the least and most over all runs are their intervals."""
    value, *others = runs
    return {
        key: Estimate(
            value=value[key],
            low=min(run[key] for run in runs),
            high=max(run[key] for run in runs),
        )
        for key in value
        if all(key in run for run in others)
    }


def finite_metrics(flat: Mapping[str, float]) -> dict[str, float | None]:
    """Flat metrics with None where JSON has no number."""
    return {key: finite(value) for key, value in flat.items()}
