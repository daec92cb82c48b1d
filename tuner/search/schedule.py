"""The schedule: hot settings with the most SLA headroom per load band, found by simulation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from engine.spec.measurement import Fidelity
from engine.spec.settings import Settings
from policies.capacity_table import CarriedRate
from policies.points import Estimate, OperatingPoint
from policies.report import LATENCIES
from policies.schedule import LoadBand, Schedule
from policies.select import low_threshold_warning
from policies.sla import Sla
from tuner.search.design import ruled_settings
from tuner.search.simulator import Simulator
from tuner.spec.space import Space
from tuner.workload.slices import at_rate, head, one_at_a_time
from tuner.workload.workload import Workload

RATE_FACTORS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
# Each rate is judged by what arrives in a minute: a queue that grows must have time to show.
BAND_SECONDS = 60.0
MIN_REQUESTS, MAX_REQUESTS = 80, 1000
# How many requests, one at a time, show what an idle engine does.
ALONE_REQUESTS = 200
# Other settings must win by this much over the recommended ones to be worth the change.
MIN_GAIN = 0.05
# A band needs no more headroom than this share of every bound.
SAFE_HEADROOM = 0.2


def build_schedule(
    simulator: Simulator,
    space: Space,
    best: Settings,
    workload: Workload,
    sla: Sla,
    *,
    carried: CarriedRate | None = None,
) -> Schedule:
    """Bands of the recommended plan around the workload's own rate, lowest first.

    A controller sees a new load only after it has come, and a burst that meets a quiet band's
    settings must not break the SLA before they change. So settings are judged by their smaller
    headroom of two: at the band's own rate and at the next higher one. At no higher rate may they
    be worse than the recommended ones. So a controller that is late, or wrong about the load, does
    no harm compared with holding still. Of settings that leave about as much headroom those stay
    that the neighbouring rates have, too: caps that never bind are no reason for a change.

    ``carried`` is what the plan carries, None if nobody knows. Where that was measured, bands above
    the workload's own rate have settings that ran: simulation knows nothing of what front end and
    clients take of the same cores, and there is no headroom left for being wrong.
    """
    ran = _ran(best, workload, carried)
    choices = list(dict.fromkeys([*_choices(simulator, space, best), ran or best]))
    scaled = [at_rate(_sample(workload, factor), factor) for factor in RATE_FACTORS]
    points = [{s: simulator.quick_point(s, load) for s in choices} for load in scaled]
    good_enough = [_good_enough(points[nth:], best, sla) for nth in range(len(points))]
    for nth, factor in enumerate(RATE_FACTORS):
        if ran is not None and factor > 1.0:
            good_enough[nth] = {ran: 0.0}
        elif factor == 1.0 and best in good_enough[nth]:  # what is recommended is there already
            good_enough[nth] = {best: 0.0}
    chosen = fewest_changes(good_enough, best)
    found: list[tuple[float, Settings, float]] = []
    for load, known, settings in zip(scaled, points, chosen, strict=True):
        rate = _rate_rps(simulator, settings, load)
        if rate > (found[-1][0] if found else 0.0):
            found.append((rate, settings, known[settings].headroom(sla)))
    return Schedule(
        bands=_merged(found, workload),
        alone=_alone(simulator, [settings for _, settings, _ in found], workload),
    )


def _ran(best: Settings, workload: Workload, carried: CarriedRate | None) -> Settings | None:
    """The settings that carry most of those that ran; None where none was measured.

    The recommended ones carry the workload's own rate. No band may change the engine's order.
    """
    if carried is None or carried.fidelity is not Fidelity.MEASURED:
        return None
    carries_more = carried.low_rps > (workload.rate_rps or 0.0)
    return replace(carried.settings, order=best.order) if carries_more else best


def _sample(workload: Workload, factor: float) -> Workload:
    """The first requests, as many as come in ``BAND_SECONDS`` at ``factor`` times the rate."""
    wanted = (workload.rate_rps or 0.0) * factor * BAND_SECONDS
    return head(workload, max(MIN_REQUESTS, min(MAX_REQUESTS, round(wanted))))


def _alone(
    simulator: Simulator, choices: list[Settings], workload: Workload
) -> dict[str, Estimate]:
    """Latencies of requests one at a time, each the lowest of all ``choices``."""
    idle = one_at_a_time(head(workload, ALONE_REQUESTS))
    points = [simulator.point(settings, idle).metrics for settings in dict.fromkeys(choices)]
    return {
        key: Estimate(
            value=min(metrics[key].value for metrics in points),
            low=min(metrics[key].low for metrics in points),
            high=min(metrics[key].high for metrics in points),
        )
        for key in points[0]
        if key.endswith(LATENCIES) and all(key in metrics for metrics in points)
    }


def _choices(simulator: Simulator, space: Space, best: Settings) -> list[Settings]:
    """Caps one notch around the recommended ones; thresholds advised and above the decodes."""
    seqs = _around(space.num_seqs, best.caps.max_num_seqs)
    tokens = _around(space.batched_tokens, best.caps.max_num_batched_tokens)
    choices = [best]
    for max_num_seqs in seqs:
        for max_tokens in tokens:
            caps = replace(best.caps, max_num_seqs=max_num_seqs, max_num_batched_tokens=max_tokens)
            if not space.has_room(best.plan, caps):
                continue
            timer = simulator.timer(best.plan)
            choices.append(replace(best, caps=caps))
            ruled = ruled_settings(best.plan, timer, caps, has_rungs=space.has_rungs)
            # The order is the engine's own: no band may change it.
            choices += [replace(settings, order=best.order) for settings in ruled]
    return list(dict.fromkeys(choices))


def _around(grid: tuple[int, ...], value: int) -> list[int]:
    """The grid's values next to ``value``, and itself."""
    below = [v for v in grid if v < value][-1:]
    above = [v for v in grid if v > value][:1]
    return [*below, value, *above]


def _good_enough(
    points: list[dict[Settings, OperatingPoint]], best: Settings, sla: Sla
) -> dict[Settings, float]:
    """Settings that leave as much headroom as any, but for ``MIN_GAIN``, and how much; where none
    leaves so much more than the recommended ones, those and what is no worse. ``points`` are those
    of the band's own rate and of all higher ones."""
    every = list(points[0].values())
    allowed = {
        settings: min(_score(rate[settings], sla) for rate in points[:2])
        for settings, point in points[0].items()
        if settings == best
        or (
            low_threshold_warning(point, every) is None
            and all(_is_no_worse(above, settings, best, sla) for above in points[1:])
        )
    }
    least = max(allowed.values()) - MIN_GAIN
    if least <= allowed[best]:
        least = allowed[best]
    return {settings: score for settings, score in allowed.items() if score >= least}


def fewest_changes(
    good_enough: Sequence[Mapping[Settings, float]], best: Settings
) -> list[Settings]:
    """Settings for each rate, of those that are good enough there with their scores, so that they
    change as seldom as can be: a change that gains nothing is still one to whoever watches.

    Each stretch of rates goes on for as long as any settings are good enough all along; so there
    are no fewer. It has ``best`` where they are, else those whose lowest score is highest.
    """
    chosen: list[Settings] = []
    while len(chosen) < len(good_enough):
        length, common = 0, dict(good_enough[len(chosen)])
        for rate in good_enough[len(chosen) :]:
            both = {s: min(score, rate[s]) for s, score in common.items() if s in rate}
            if not both:
                break
            length, common = length + 1, both
        top = max(common, key=lambda settings: common[settings])
        chosen += [best if best in common else top] * length
    return chosen


def _is_no_worse(
    points: dict[Settings, OperatingPoint], settings: Settings, best: Settings, sla: Sla
) -> bool:
    enough = min(_score(points[best], sla), SAFE_HEADROOM)
    return _score(points[settings], sla) >= enough


def _score(point: OperatingPoint, sla: Sla) -> float:
    """Headroom if the SLA is met; else minus the share of requests that miss theirs.

    Without this, the winner among settings that all miss might be one that misses by least but for
    every request.
    """
    headroom, attainment = point.headroom(sla), point.metrics.get("attainment")
    if headroom >= 0 or attainment is None:
        return headroom
    return min(0.0, attainment.value - 1.0)


def _rate_rps(simulator: Simulator, settings: Settings, workload: Workload) -> float:
    """Requests per second of the load; for a closed loop what it reaches."""
    if workload.closed is None:
        return workload.rate_rps or 1.0
    measurement = simulator.run(settings, workload)
    return len(measurement.completed) / measurement.window_s if measurement.window_s else 0.0


def _merged(found: list[tuple[float, Settings, float]], workload: Workload) -> tuple[LoadBand, ...]:
    """Neighbouring rates with the same settings become one band; borders lie between rates."""
    groups: list[list[tuple[float, Settings, float]]] = []
    for entry in found:
        if groups and groups[-1][-1][1] == entry[1]:
            groups[-1].append(entry)
        else:
            groups.append([entry])
    borders = [math.sqrt(below[-1][0] * above[0][0]) for below, above in pairwise(groups)]
    lows, highs = [0.0, *borders], [*borders, math.inf]
    return tuple(
        LoadBand(
            rate_rps_low=low,
            rate_rps_high=high,
            mean_input_tokens=float(workload.input_tokens.mean()),
            mean_output_tokens=float(workload.output_tokens.mean()),
            settings=group[0][1],
            headroom=min(headroom for _, _, headroom in group),
        )
        for low, high, group in zip(lows, highs, groups, strict=True)
    )
