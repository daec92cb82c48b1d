"""What the profiler and its measuring ranks say to each other (msgpack, never pickle)."""

from __future__ import annotations

import msgspec

from engine.spec.model import DType
from engine.spec.quantisation import WeightFormat
from engine.wire.messages import Meeting
from tuner.profiling.profile import AttentionTime, CollectiveTime, ElementwiseTime, GemmTime


class OperatorJob(msgspec.Struct, tag="operators", kw_only=True):
    """Measure the operators of one model's shards, all ranks at once.

    ``degrees`` lists into how many tensor shards weights are cut; ``seconds`` is the time to spend
    in all. ``quantisation`` is what the layers of a plain checkpoint are quantised to.
    """

    model_dir: str
    dtype: DType
    meeting: Meeting
    rank: int
    num_ranks: int
    device: str
    num_threads: int
    degrees: list[int]
    max_tokens: int
    max_context: int
    seconds: float
    quantisation: WeightFormat | None = None


class OperatorReport(msgspec.Struct, tag="report", kw_only=True):
    """What one rank measured."""

    rank: int
    gemms: list[GemmTime]
    attentions: list[AttentionTime]
    elementwise: list[ElementwiseTime]
    collectives: list[CollectiveTime]


class OperatorFailure(msgspec.Struct, tag="failure", kw_only=True):
    """A measuring rank raised."""

    rank: int
    detail: str


FromProfileRank = OperatorReport | OperatorFailure
