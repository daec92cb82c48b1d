"""Which addresses the service may call: those of observed servers, and of them not all."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)

Network = IPv4Network | IPv6Network
NAT64 = IPv6Network("64:ff9b::/96")
# Refused whatever is allowed: no server is there, and clouds keep secrets at link-local addresses.
NEVER = "link-local, multicast, reserved or unspecified"


def read_networks(text: str) -> tuple[Network, ...]:
    """Networks as in ``10.0.0.0/8,127.0.0.1/32``; empty: any.

    Raises:
        ValueError: a part is none.
    """
    return tuple(ip_network(part.strip()) for part in text.split(",") if part.strip())


def why_forbidden(address: str, networks: Sequence[Network]) -> str | None:
    """Why the service must not call this IP address; None where it may.

    Raises:
        ValueError: it is no IP address.
    """
    ip = _reached(address)
    # Python calls ::1 reserved, too.
    is_reserved = ip.is_reserved and not ip.is_loopback
    if ip.is_link_local or ip.is_multicast or ip.is_unspecified or is_reserved:
        return f"{ip} is {NEVER}"
    if networks and not any(ip.version == net.version and ip in net for net in networks):
        return f"{ip} lies outside GEARSHIFT_OBSERVE_NETWORKS"
    return None


def _reached(address: str) -> IPv4Address | IPv6Address:
    """The address that is reached in the end: some of IPv6 stand for one of IPv4."""
    ip = ip_address(address.partition("%")[0])
    if isinstance(ip, IPv4Address):
        return ip
    if ip in NAT64:
        return IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour or ip
