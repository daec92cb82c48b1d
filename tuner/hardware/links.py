"""Links between devices: small versioned files beside this module, and the law of collectives over
a link that nobody measured.

A device's own link is timed by curves where they were fitted; any other by :class:`LinkSpec`'s law
of latency and bandwidth.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, assert_never

from tuner.spec.catalog import FileShelf, check_name
from tuner.spec.documents import (
    check_above_zero,
    check_not_negative,
    check_shares,
    read_document,
    read_file,
)
from tuner.work.counts import CollectiveKind

LINKS = FileShelf(noun="link", sub_folder="links", folder=Path(__file__).parent / "links")
SCHEMA = "link/v2"
GB = 1e9


class Topology(StrEnum):
    """How the devices of a node are joined, which decides what a group of some of them has to
    itself."""

    SWITCH = "switch"
    """Any device reaches any other in one round at full speed: a group has all of it."""
    MESH = "mesh"
    """A wire of its own between every two devices: a group has only those among its members."""
    RING = "ring"
    """Data goes round from neighbour to neighbour."""


@dataclass(frozen=True, kw_only=True)
class LinkSpec:
    """One kind of link: peak per device and direction, and what is reached of it.

    ``call_s`` is what a reduction costs (start, and waiting for the others), ``exchange_s`` a
    gather or an all-to-all, ``hop_s`` each round of them, ``send_s`` a send. ``wires`` is how many
    of them a device's peak is made of: in a mesh one to each other device.
    ``has_multicast``: the switch itself adds and spreads (NVLS) where all its devices take part.
    ``measured_on`` names the device whose curves hold collectives over this link, if any.
    """

    name: str
    title: str
    version: int
    source: str
    bytes_per_s_per_direction: float
    efficiency: float
    call_s: float
    exchange_s: float
    hop_s: float
    send_s: float
    topology: Topology
    wires: int = 1
    has_multicast: bool = False
    measured_on: str | None = None

    @classmethod
    def from_json(cls, raw: dict[str, Any], *, where: str) -> LinkSpec:
        """Read one description.

        Raises:
            TunerError: another schema, or a missing, unknown or impossible value, with its name.
        """
        return read_document(raw, cls, schema=SCHEMA, where=where)

    def __post_init__(self) -> None:
        check_above_zero(self, "bytes_per_s_per_direction", "wires")
        check_shares(self, "efficiency")
        check_not_negative(self, "call_s", "exchange_s", "hop_s", "send_s")

    @property
    def bytes_per_s(self) -> float:
        """Achievable bytes per second and direction, all of a device's wires together."""
        return self.bytes_per_s_per_direction * self.efficiency

    def bytes_per_s_among(self, ranks: int) -> float:
        """Achievable bytes per second and direction of a device within a group of ``ranks``."""
        if self.topology is not Topology.MESH:
            return self.bytes_per_s
        return self.bytes_per_s * min(1.0, (ranks - 1) / self.wires)

    def at_speed(self, bytes_per_s_per_direction: float) -> LinkSpec:
        """The same link with another bandwidth; latencies stay."""
        name = f"{bytes_per_s_per_direction / GB:g}gb/s"
        return replace(self, name=name, bytes_per_s_per_direction=bytes_per_s_per_direction)

    def seconds(self, kind: CollectiveKind, ranks: int, num_bytes: float) -> float:
        """One collective by latency and bandwidth.

        ``num_bytes`` is what a rank hands in: its whole tensor for a reduction or all-to-all, its
        own part for a gather or a send. A reduction over a switch or a mesh takes the better of
        reading everybody's tensor in one round and of scattering and gathering in two; over a
        ring 2(n-1) rounds (Thakur, Rabenseifner, Gropp 2005).
        """
        share, others = (ranks - 1) / ranks, ranks - 1
        bytes_per_s = self.bytes_per_s_among(ranks)
        match kind:
            case CollectiveKind.SEND:
                return self.send_s + num_bytes / self.bytes_per_s_among(2)
            case CollectiveKind.ALL_TO_ALL:
                return self._exchange_s(others, share * num_bytes / bytes_per_s)
            case CollectiveKind.ALL_GATHER:
                return self._exchange_s(others, others * num_bytes / bytes_per_s)
            case CollectiveKind.ALL_REDUCE:
                in_two_s = 2 * share * num_bytes / bytes_per_s
                if self.topology is Topology.RING:
                    return self._rounds_s(2 * others, in_two_s)
                at_once_s = self._rounds_s(1, others * num_bytes / bytes_per_s)
                return min(at_once_s, self._rounds_s(2, in_two_s))
            case _:
                assert_never(kind)

    def _exchange_s(self, others: int, sending_s: float) -> float:
        rounds = others if self.topology is Topology.RING else 1
        return self.exchange_s + rounds * self.hop_s + sending_s

    def _rounds_s(self, rounds: int, sending_s: float) -> float:
        return self.call_s + rounds * self.hop_s + sending_s


def list_links() -> list[str]:
    """Names of the links that have a description."""
    return LINKS.list_names()


def load_link(name: str) -> LinkSpec:
    """The description of ``name``.

    Raises:
        TunerError: no such link, with the nearest and the known ones, or a file that is wrong.
    """
    path = LINKS.get_path(name, way_out=", or a bandwidth per device and direction as in '64gb/s'")
    link = LinkSpec.from_json(read_file(path), where=LINKS.where(path))
    check_name(path, link.name)
    return link


def find_speed(text: str) -> float | None:
    """Bytes per second of ``64gb/s``; None where the text is no bandwidth."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)gb/s", text)
    return float(match[1]) * GB if match and float(match[1]) > 0 else None
