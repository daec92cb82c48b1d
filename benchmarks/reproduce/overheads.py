"""What a step costs beside its forward pass: as fitted, and as Albireo's paper has it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from benchmarks.reproduce.nodes import OLDER_VLLM, get_node
from benchmarks.reproduce.sampled import SampledNode, SampleSeconds, predicted_sampling
from tuner.described.node import Node
from tuner.hardware.sampling import SampleKind, SamplerSpec
from tuner.work.scaling import StepParts

HARDWARE, MODEL, PRECISION, BACKEND = "8xh100", "qwen2.5-32b", "bf16", OLDER_VLLM
BATCH = 128
PUBLISHED = StepParts(
    scheduling_s=4e-3, input_s=4e-3, forward_s=21e-3, sampling_s=6e-3, output_s=0.5e-3
)
ALL_ROWS = SamplerSpec(kind=SampleKind.FULL)
SHARED_ROWS = replace(ALL_ROWS, is_parallel=True)


@dataclass(frozen=True, kw_only=True)
class Overheads:
    """What a step costs beside the forward pass: the host's part, and the sampler's."""

    name: str
    host_step_s: float
    host_seq_s: float
    sampling: SampleSeconds
    shared_sampling: SampleSeconds

    def served(self, node: Node, *, is_removed: bool) -> SampledNode:
        """``node`` with these overheads exposed, or hidden and shared out."""
        host = replace(
            node.backend.host,
            step_s=self.host_step_s,
            seq_s=self.host_seq_s,
            is_overlapped=is_removed,
            exposed_s=0.0,
        )
        return SampledNode(
            hardware=node.hardware,
            model=node.model,
            precision=node.precision,
            backend=replace(node.backend, host=host),
            sampling=self.shared_sampling if is_removed else self.sampling,
        )


def fitted_overheads(model: str) -> Overheads:
    """The ``vllm`` profile's host times, and the estimate of a sort-based sampler."""
    node = get_node(HARDWARE, model, PRECISION, BACKEND)
    host = node.backend.host
    return Overheads(
        name="profile `vllm`, top-p",
        host_step_s=host.step_s + host.exposed_s,
        host_seq_s=host.seq_s,
        sampling=predicted_sampling(node, ALL_ROWS),
        shared_sampling=predicted_sampling(node, SHARED_ROWS),
    )


def published_overheads() -> Overheads:
    """The paper's own times at batch 128, in proportion to the sequences of a step."""
    host_s = PUBLISHED.scheduling_s + PUBLISHED.input_s + PUBLISHED.output_s
    row_s = PUBLISHED.sampling_s / BATCH
    return Overheads(
        name="the paper's own",
        host_step_s=0.0,
        host_seq_s=host_s / BATCH,
        sampling=lambda _, rows: rows * row_s,
        shared_sampling=lambda plan, rows: rows * row_s / plan.stage_size,
    )
