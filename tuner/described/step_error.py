"""How far the step times of a question may be off: by what was measured nearest to it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from dataclasses import dataclass

from engine.spec.model import ModelConfig
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Settings
from policies.points import INTERVAL_Z
from policies.slowness import Spread
from tuner.backends.step_errors import OUTSIDE_FACTOR, Phase, StepErrorBand, StepErrors
from tuner.described.node import Node
from tuner.step_model.timer import StepScale
from tuner.work.counts import model_sizes
from tuner.work.models import find_model
from tuner.workload.workload import Workload


@dataclass(frozen=True, kw_only=True)
class StepError:
    """90 % half widths of log(true / simulated) step times. ``outside`` says in words what about
    the question was never measured; the widths are wider for it. ``unseen`` says so of the model:
    the widths are then what models that were left out showed.
    ``correlation`` is that of both kinds' errors, ``prefill_mean`` and ``decode_mean`` what these
    are on average, which the ends of intervals leave out, and ``spreads`` how far they scatter
    about that, in standard errors of the widths, each as likely. ``unexplained`` is the share of
    runs like it whose TTFT no step times explain: that is in no interval."""

    prefill: float
    decode: float
    outside: tuple[str, ...] = ()
    unseen: str = ""
    correlation: float = 1.0
    prefill_mean: float = 0.0
    decode_mean: float = 0.0
    spreads: tuple[Spread, ...] = (Spread(),)
    unexplained: float = 0.0

    def scale(self, slowness: float) -> StepScale:
        """All steps ``slowness`` standard errors slower."""
        return StepScale(
            prefill=math.exp(slowness * self.prefill / INTERVAL_Z),
            decode=math.exp(slowness * self.decode / INTERVAL_Z),
        )

    def of_prompts(self, slowness: float) -> StepScale:
        """Only steps with prompts ``slowness`` standard errors slower."""
        return StepScale(prefill=self.scale(slowness).prefill)

    @property
    def mean_slowness(self) -> tuple[float, float]:
        """How slow steps with prompts, and steps of decodes, are on average: standard errors."""
        pairs = (self.prefill_mean, self.prefill), (self.decode_mean, self.decode)
        prompts, decodes = (INTERVAL_Z * mean / width if width else 0.0 for mean, width in pairs)
        return prompts, decodes

    @property
    def is_exact(self) -> bool:
        return self.prefill == self.decode == 0


def step_error(
    node: Node, settings: Settings, workload: Workload, metrics: Mapping[str, float]
) -> StepError:
    """How far step times of ``settings`` may be off under ``workload``; their run had ``metrics``.

    Where the backend was compared with served runs by phase and load, the widths are theirs, and
    wider where no run was of this model on this device, and wider still outside of what runs span;
    else both are the node's.
    """
    known, plan = node.backend.step_errors, settings.plan
    if known is None:
        return StepError(prefill=node.interval, decode=node.interval)
    clients = mean_active(settings, workload, metrics) / plan.dp
    unseen = _unseen(known, node)
    # How much groups differ includes how much their devices do.
    devices = {*known.devices, *(group.device for group in known.compared if unseen)}
    outside = tuple(_outside(known, devices, node, plan, workload, clients))
    factor = OUTSIDE_FACTOR if outside else 1.0
    device, precision = node.hardware.device, node.precision
    # Runs on a compared device show the device's error, too; on others, its own error may be the
    # larger one.
    least = 0.0
    if device.name not in devices or device.interval_for(precision) > device.interval:
        least = device.interval_for(precision)
    of = known.unseen_band if unseen else known.band
    prefill, decode = (of(phase, clients, plan.tp) for phase in Phase)
    return StepError(
        prefill=factor * max(least, prefill.half_width),
        decode=factor * max(least, decode.half_width),
        outside=outside,
        unseen=unseen,
        correlation=known.correlation,
        prefill_mean=known.prefill_mean,
        decode_mean=known.decode_mean,
        # What compared runs scatter by says nothing of what was never compared.
        spreads=(Spread(),) if outside else _spreads(prefill, decode),
        unexplained=prefill.unexplained,
    )


def _spreads(prefill: StepErrorBand, decode: StepErrorBand) -> tuple[Spread, ...]:
    """In standard errors of each band's width. A model whose steps with prompts are hard to foresee
    is taken to be one whose decodes are."""
    if not prefill.spreads or not decode.spreads:
        return (Spread(),)
    prompts, decodes = (_in_errors(band) for band in (prefill, decode))
    return tuple(Spread(prompts=p, decodes=d) for p, d in zip(prompts, decodes, strict=True))


def _in_errors(band: StepErrorBand) -> list[float]:
    error = band.half_width / INTERVAL_Z
    return [spread / error if error else 0.0 for spread in band.spreads]


def mean_active(settings: Settings, workload: Workload, metrics: Mapping[str, float]) -> float:
    """Requests that run at once: the clients of a closed loop, else by Little's law; no more than
    the caps allow."""
    most = float(settings.plan.dp * settings.caps.max_num_seqs)
    if workload.closed is not None:
        return min(most, float(workload.closed.concurrency))
    e2e_ms, rate = metrics.get("mean_e2e_ms"), workload.rate_rps
    return min(most, rate * e2e_ms / 1e3) if e2e_ms is not None and rate is not None else 1.0


def _unseen(known: StepErrors, node: Node) -> str:
    """Says so in words if no compared run is of this model on this device."""
    device = node.hardware.device.name
    if any(
        group.device == device and _is_alike(find_model(group.model), node.model)
        for group in known.groups
    ):
        return ""
    served = ", ".join(f"{group.model} on {group.device}" for group in known.groups)
    return f"this model on {device} (served runs are of {served or 'others'})"


def _is_alike(one: ModelConfig | None, other: ModelConfig) -> bool:
    """Whether two models have the same products: weights of another training make no difference."""
    return one is not None and model_sizes(one) == model_sizes(other)


def _outside(
    known: StepErrors,
    devices: Set[str],
    node: Node,
    plan: ParallelPlan,
    workload: Workload,
    clients: float,
) -> list[str]:
    device = node.hardware.device.name
    longest = int(workload.input_tokens.max())
    found = []
    if device not in devices:
        found.append(f"{device} (served runs are of {', '.join(sorted(devices))})")
    if plan.pp > 1:
        found.append("pipeline stages")
    if plan.sp > 1:
        found.append("sequence parallelism")
    if plan.tp > max(known.tp):
        found.append(f"tp={plan.tp} (up to {max(known.tp)})")
    if clients > 2 * known.max_clients:
        found.append(f"{clients:.0f} requests at once a replica (up to {known.max_clients})")
    if longest > 2 * known.max_input_tokens:
        found.append(f"prompts of {longest} tokens (up to {known.max_input_tokens})")
    return found
