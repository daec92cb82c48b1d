"""Which addresses the service may call."""

from __future__ import annotations

import pytest

from api.web.addresses import read_networks, why_forbidden


@pytest.mark.parametrize(
    "address",
    ["169.254.169.254", "fe80::1", "fe80::1%eth0", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe",
     "2002:a9fe:a9fe::1", "0.0.0.0", "::",
     "224.0.0.1", "ff02::1", "255.255.255.255"],
)  # fmt: skip
def test_what_is_nobodys_server_is_never_called(address: str) -> None:
    assert "link-local" in str(why_forbidden(address, read_networks("0.0.0.0/0,::/0")))


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "10.1.2.3", "192.0.2.7", "2001:db8::1"])
def test_an_operators_own_network_may_be_called(address: str) -> None:
    assert why_forbidden(address, ()) is None


def test_networks_keep_all_others_out() -> None:
    networks = read_networks("10.0.0.0/8, 127.0.0.1/32")
    assert why_forbidden("10.9.9.9", networks) is None
    assert "outside GEARSHIFT_OBSERVE_NETWORKS" in str(why_forbidden("192.168.0.1", networks))
    assert "outside" in str(why_forbidden("::1", networks))


def test_what_is_no_network_is_refused() -> None:
    with pytest.raises(ValueError, match="does not appear"):
        read_networks("10.0.0.0/8,home")
