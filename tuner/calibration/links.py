"""Curves of collectives, of point to point, and laws of the small operations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tuner.calibration.curve_fit import NUM_FOLDS, fit_size_curve, fit_small, held_out
from tuner.calibration.readers import (
    Columns,
    read_custom_all_reduce,
    read_links,
    read_nccl,
    read_small,
)
from tuner.calibration.systems import System
from tuner.hardware.curves import (
    ACROSS_NODES,
    IN_NODE,
    CollectiveCurve,
    HeldOut,
    SizeCurve,
    SmallLaw,
)
from tuner.hardware.physics import ACTIVATION_BYTES, HEAD_DIM, FloatArray
from tuner.work.counts import CollectiveKind

NCCL_NAMES = {
    CollectiveKind.ALL_REDUCE: "all_reduce",
    CollectiveKind.ALL_GATHER: "all_gather",
    CollectiveKind.ALL_TO_ALL: "alltoall",
}
GRAPH = "graph"
LAUNCHES = (GRAPH, "eager")
CLEAN_BYTES = 65_536  # the published all-reduce across nodes is dirty below
KIB = 1024
# vLLM's all-reduce (csrc/custom_all_reduce.cuh): this many devices read all tensors at once below
# these bytes (two always do). Tensors of LIBRARY_BYTES and more go to NCCL.
ONE_SHOT_BYTES = {4: 512 * KIB, 8: 256 * KIB}
LIBRARY_BYTES = 8 * KIB * KIB
SMALL = {
    "norm": "input_layernorm",
    "rope": "attn_rope",
    "activation": "mlp_act",
    "embedding": "emb",
}


@dataclass(frozen=True, kw_only=True)
class Series:
    """Seconds of one collective over bytes, for one number of ranks."""

    kind: CollectiveKind
    via: str
    topology: str
    ranks: int
    num_bytes: FloatArray
    seconds: FloatArray

    @property
    def is_measured_in_node(self) -> bool:
        """A collective inside one node, from ``operators/``."""
        return self.topology == IN_NODE and self.kind is not CollectiveKind.SEND

    def held_out_logs(self) -> FloatArray:
        """log(predicted / measured) of every size by a curve that never saw it: every fifth size
        is left out at a time."""
        logs = np.zeros(len(self.seconds))
        for fold in range(NUM_FOLDS):
            held = np.arange(len(logs)) % NUM_FOLDS == fold
            curve = self.fit_curve(~held)
            predicted = [curve.seconds(size) for size in self.num_bytes[held]]
            logs[held] = np.log(predicted / self.seconds[held])
        return logs

    def fit(self) -> CollectiveCurve:
        return CollectiveCurve(
            kind=self.kind.value,
            via=self.via,
            topology=self.topology,
            ranks=self.ranks,
            curve=self.fit_curve(np.ones(len(self.seconds), dtype=np.bool_)),
        )

    def fit_curve(self, mask: npt.NDArray[np.bool_]) -> SizeCurve:
        """A curve through the rows of ``mask``."""
        return fit_size_curve(self.num_bytes[mask], self.seconds[mask], self.breaks)

    @property
    def breaks(self) -> tuple[float, ...]:
        """Bytes at which another algorithm begins, as the sources say: vLLM's all-reduce turns
        from one round to two, then leaves large tensors to NCCL. Eager calls hide it behind
        their launches."""
        if self.via != GRAPH:
            return ()
        rounds = (ONE_SHOT_BYTES[self.ranks],) if self.ranks in ONE_SHOT_BYTES else ()
        return (*rounds, LIBRARY_BYTES)


def read_series(data: Path, system: System) -> tuple[list[Series], list[Columns]]:
    """Every series of collectives and sends of one device, and the files they are from."""
    found: list[Series] = []
    files: list[Columns] = []
    for launch in LAUNCHES:
        columns = read_custom_all_reduce(data, system.operators, launch)
        files.append(columns)
        found += _by_ranks(columns, CollectiveKind.ALL_REDUCE, via=launch)
    for kind, name in NCCL_NAMES.items():
        columns = read_nccl(data, system.operators, name)
        files.append(columns)
        found += _by_ranks(columns, kind, via="nccl")
    columns = read_links(data, system.send)
    files.append(columns)
    for topology, per_node in ((IN_NODE, 2), (ACROSS_NODES, 1)):
        found.append(_link(columns, CollectiveKind.SEND, topology, ranks=2, per_node=per_node))
    if system.across_nodes:
        columns = read_links(data, system.across_nodes)
        files.append(columns)
        for ranks, per_node in ((2, 1), (4, 2), (8, 4), (16, 8)):
            found.append(
                _link(
                    columns,
                    CollectiveKind.ALL_REDUCE,
                    ACROSS_NODES,
                    ranks=ranks,
                    per_node=per_node,
                    smallest=CLEAN_BYTES,
                )
            )
    return found, files


def _by_ranks(columns: Columns, kind: CollectiveKind, *, via: str) -> list[Series]:
    ranks = columns.column("num_gpus")
    found = []
    for count in np.unique(ranks):
        mine = columns.where(ranks == count)
        found.append(
            Series(
                kind=kind,
                via=via,
                topology=IN_NODE,
                ranks=int(count),
                num_bytes=mine.column("message_size") * ACTIVATION_BYTES,
                seconds=mine.seconds,
            )
        )
    return found


def _link(
    columns: Columns,
    kind: CollectiveKind,
    topology: str,
    *,
    ranks: int,
    per_node: int,
    smallest: int = 0,
) -> Series:
    mine = columns.where(
        (columns.column("num_workers") == ranks)
        & (columns.column("devices_per_node") == per_node)
        & (columns.column("size") >= smallest)
    )
    return Series(
        kind=kind,
        via="nccl",
        topology=topology,
        ranks=ranks,
        num_bytes=mine.column("size"),
        seconds=mine.seconds,
    )


def collective_error(series: list[Series]) -> HeldOut:
    """Error on message sizes left out of every series."""
    return held_out(np.concatenate([one.held_out_logs() for one in series]), len(series))


# -- small operations ----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SmallSeries:
    """Seconds of one small operation over the bytes it moves; ``ranks`` tensor shards each."""

    name: str
    ranks: FloatArray
    num_bytes: FloatArray
    seconds: FloatArray

    def fit(self) -> SmallLaw:
        return fit_small(self.num_bytes, self.seconds)

    def held_out(self) -> HeldOut:
        """Error on each tensor-parallel degree by a law fitted on the others."""
        logs = np.zeros(len(self.seconds))
        degrees = np.unique(self.ranks)
        for degree in degrees:
            held = self.ranks == degree
            law = fit_small(self.num_bytes[~held], self.seconds[~held])
            predicted = [law.seconds(size) for size in self.num_bytes[held]]
            logs[held] = np.log(predicted / self.seconds[held])
        return held_out(logs, len(degrees))


def read_small_series(data: Path, system: System) -> tuple[list[SmallSeries], list[Columns]]:
    """Norm, rotary angles, activation and embedding of one device, and their files."""
    found, files = [], []
    for name, operation in SMALL.items():
        every = [read_small(data, file, operation) for file in system.small]
        files += every if name == "norm" else []
        found.append(
            SmallSeries(
                name=name,
                ranks=np.concatenate([c.column("num_tensor_parallel_workers") for c in every]),
                num_bytes=np.concatenate([_small_bytes(name, c) for c in every]),
                seconds=np.concatenate([c.seconds for c in every]),
            )
        )
    return found, files


def _small_bytes(name: str, columns: Columns) -> FloatArray:
    """Bytes one call reads and writes."""
    hidden, ffn = columns.column("n_embd"), columns.column("n_expanded_embd")
    heads, kv_heads = columns.column("n_head"), columns.column("n_kv_head")
    ranks = columns.column("num_tensor_parallel_workers")
    width = {
        "norm": 2 * hidden,
        "embedding": 2 * hidden,
        "rope": 2 * (heads + kv_heads) * HEAD_DIM / ranks,
        "activation": 3 * ffn / ranks,
    }[name]
    return np.asarray(columns.column("num_tokens") * width * ACTIVATION_BYTES)
