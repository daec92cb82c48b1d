"""A server that was profiled from outside, as a node: the same questions are put to both."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from engine.spec.model import ModelConfig
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps
from tuner.backends import Backend, PartedTimer, load_backend
from tuner.backends.backend import HostTimes
from tuner.described.node import Node
from tuner.described.server_profile import ProfiledPlan, ServerProfile
from tuner.hardware import Hardware, MemoryEstimate, Precision
from tuner.hardware.device import DeviceSpec, Efficiency
from tuner.hardware.links import LinkSpec, Topology
from tuner.hardware.power import PowerSpec
from tuner.spec.errors import TunerError
from tuner.step_model.server import ServerTimer

SOURCE = "seen of a running server from outside"


@dataclass(frozen=True, kw_only=True)
class ProfiledNode(Node):
    """The model that a profiled server has, on whatever it runs on. Plans that were not profiled
    raise TunerError wherever step times or memory are asked for."""

    profile: ServerProfile

    @property
    def has_rungs(self) -> bool:
        return False

    @property
    def interval(self) -> float:
        return self.profile.interval

    @property
    def place(self) -> str:
        return f"{self.hardware} ({SOURCE})"

    @property
    def has_device(self) -> bool:
        return False

    @property
    def doubts(self) -> tuple[str, ...]:
        return (f"step times were {SOURCE}; not measured: {'; '.join(self.profile.not_measured)}",)

    def timer(self, plan: ParallelPlan) -> PartedTimer:
        return ServerTimer(self._known(plan).steps)

    def memory(
        self, plan: ParallelPlan, *, caps: Caps | None = None, needed_kv_tokens: int = 1
    ) -> MemoryEstimate:
        """What the server told; of anything else it is only known that there was room."""
        known = self._known(plan)
        kv_bytes = self.model.kv_bytes_per_token(plan, self.precision.dtype)
        weights = self.model.weight_bytes_per_rank(plan, self.precision.dtype)
        return MemoryEstimate(
            plan=plan,
            caps=caps or known.caps,
            usable_bytes=weights + self._kv_tokens(known) * kv_bytes,
            weight_bytes=weights,
            activation_bytes=0,
            runtime_bytes=0,
            kv_bytes_per_token=kv_bytes,
            needed_kv_tokens=needed_kv_tokens,
        )

    def _known(self, plan: ParallelPlan) -> ProfiledPlan:
        return self.profile.get(plan)

    def _kv_tokens(self, known: ProfiledPlan) -> int:
        if known.kv_blocks is None:  # enough for all that may run at once
            context = self.max_model_len or self.model.max_positions
            return context * known.caps.max_num_seqs
        return known.kv_blocks * known.block_size


def profiled_node(
    path: Path,
    model: ModelConfig,
    *,
    precision: Precision | None = None,
    max_model_len: int | None = None,
) -> ProfiledNode:
    """The node of a server profile's file, for the model that it was profiled with.

    Raises:
        TunerError: a file that is no profile, or another model, number format or context.
    """
    profile = ServerProfile.read(path)
    profile.check_model(model)
    if precision not in (None, Precision.of(profile.dtype)):
        raise TunerError(f"{path}: the server was profiled in {profile.dtype}, not {precision}")
    return node_of(profile, model, name=path.stem, max_model_len=max_model_len)


def node_of(
    profile: ServerProfile, model: ModelConfig, *, name: str, max_model_len: int | None = None
) -> ProfiledNode:
    """The same of a profile in hand; ``name`` is what its devices are called."""
    first = profile.plans[0]
    return ProfiledNode(
        profile=profile,
        hardware=Hardware(device=_device(name), count=profile.num_devices),
        model=model,
        precision=Precision.of(profile.dtype),
        backend=_backend(profile, first),
        block_size=first.block_size,
        max_model_len=max_model_len or profile.max_model_len,
    )


def _backend(profile: ServerProfile, known: ProfiledPlan) -> Backend:
    """The system's profile, for how it schedules, with the times that were seen in place of the
    profile's own, which are those of GPU servers."""
    base = load_backend(profile.system)
    return replace(
        base,
        title=f"{base.title} {profile.release or ''}".strip(),
        source=SOURCE,
        host=HostTimes(step_s=0.0, seq_s=0.0, is_overlapped=base.host.is_overlapped),
        front_end=known.front_end,
        default_caps=known.caps,
        interval=profile.interval,
        release=profile.release or base.release,
        fitted=None,
        step_errors=None,
    )


def _device(name: str) -> DeviceSpec:
    """A stand-in for the server's unknown device: none of its peaks enters any answer, because a
    :class:`ProfiledNode` tells step times and memory itself."""
    link = LinkSpec(
        name="unknown", title="unknown", version=1, source=SOURCE, bytes_per_s_per_direction=1.0,
        efficiency=1.0, call_s=0.0, exchange_s=0.0, hop_s=0.0, send_s=0.0,
        topology=Topology.SWITCH,
    )  # fmt: skip
    return DeviceSpec(
        name=name, title=f"what {name} was seen on", version=1, source=SOURCE, memory_bytes=1.0,
        memory_bytes_per_s=1.0, dense_flops_per_s={"bfloat16": 1.0}, link=link, between_nodes=link,
        devices_per_node=1, adapters_per_node=1,
        power=PowerSpec(idle_w=0.0, memory_bound_w=0.0, compute_bound_w=0.0, source="unknown"),
        efficiency=Efficiency(gemm=1.0, attention=1.0, memory=1.0, usable_memory=1.0),
        kernel_launch_s=0.0, kernels_per_layer=1, host_per_step_s=0.0, host_per_seq_s=0.0,
        num_sms=1, clock_hz=1.0, interval=0.0,
    )  # fmt: skip
