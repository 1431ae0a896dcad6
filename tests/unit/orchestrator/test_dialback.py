"""Dialling back: the caller's own certificate or nothing, and never where a stranger could point us."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from dim_pipelines.errors import InputError, QuotaExceeded
from dim_pipelines.identity.membership import Membership
from dim_pipelines.orchestrator.dialback import BURST, MAX_ENDPOINTS, DialBack, may_dial
from dim_pipelines.telemetry.metrics import RpcMetrics
from dim_pipelines.testing.networks import MadeNetwork
from dim_pipelines.wire.server import RpcServer, SecureListener
from dim_pipelines.wire.tls import ServerTls


@asynccontextmanager
async def serving(member: Membership) -> AsyncIterator[str]:
    tls = ServerTls(member.server(), member.roster.client_cas, member.guard)
    server = await RpcServer.start(
        "", lambda server: [], RpcMetrics(CollectorRegistry()), secure=SecureListener("127.0.0.1:0", tls)
    )
    try:
        yield server.secure_address
    finally:
        await server.stop(0)


async def test_an_endpoint_is_reached_where_it_shows_the_callers_certificate(tmp_path: Path) -> None:
    network = MadeNetwork(tmp_path)
    node, other = network.join("node", "node"), network.join("other", "node")
    dial = DialBack(lambda: 0.0)
    async with serving(node) as own, serving(other) as foreign:
        closed = "127.0.0.1:1"
        reached = await dial.probe("me", "127.0.0.1", [own, foreign, closed, own], node.server().certificate)
        assert reached.endpoints == (own,)
        # Of another's server and of a closed port the same is said: a prober is no scanner of ports.
        assert reached.reason == "; ".join(f"{each}: it does not show the certificate" for each in (foreign, closed))
        elsewhere = await dial.probe("me", "192.0.2.1", [own], node.server().certificate)
        assert elsewhere.endpoints == () and "loopback" in elsewhere.reason


async def test_a_server_that_says_nothing_does_not_hold_the_prober(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dim_pipelines.orchestrator.dialback.DIAL_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel connects, nobody accepts
        where = f"127.0.0.1:{silent.getsockname()[1]}"
        reached = await DialBack(lambda: 0.0).probe("me", "127.0.0.1", [where], b"certificate")
    assert reached.endpoints == () and "no answer" in reached.reason


async def test_probes_are_bounded() -> None:
    dial = DialBack(lambda: 0.0)
    with pytest.raises(InputError, match="too many"):
        await dial.probe("me", "", ["127.0.0.1:1"] * (MAX_ENDPOINTS + 1), b"x")
    for certificate in (b"", bytes(5000)):
        with pytest.raises(InputError, match="certificate"):
            await dial.probe("me", "", [], certificate)
    for _ in range(int(BURST)):
        await dial.probe("me", "", [], b"x")
    with pytest.raises(QuotaExceeded):
        await dial.probe("me", "", [], b"x")
    await dial.probe("another", "", [], b"x")


@pytest.mark.parametrize("endpoint", ["unix:/tmp/x", "127.0.0.1:0", "nonsense", "no-such-host.invalid:1", "[::1:5"])
async def test_what_is_no_address_is_said_to_be_none(endpoint: str) -> None:
    reached = await DialBack(lambda: 0.0).probe("me", "127.0.0.1", [endpoint], b"x")
    assert reached.endpoints == () and reached.reason.startswith(endpoint)


@pytest.mark.parametrize(
    ("address", "observed", "dialled"),
    [
        ("192.0.2.7", "192.0.2.7", True),
        ("10.1.2.3", "192.0.2.7", True),
        ("100.64.1.2", "192.0.2.7", True),  # Tailscale
        ("fd7a:115c:a1e0::1", "192.0.2.7", True),
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.9", "127.0.0.1", True),
        ("127.0.0.1", "192.0.2.7", False),
        ("::1", "192.0.2.7", False),
        ("::ffff:127.0.0.1", "192.0.2.7", False),
        ("169.254.169.254", "192.0.2.7", False),  # cloud metadata
        ("::ffff:169.254.169.254", "192.0.2.7", False),
        ("fe80::1", "192.0.2.7", False),
        ("0.0.0.0", "127.0.0.1", False),
        ("::", "127.0.0.1", False),
        ("224.0.0.1", "192.0.2.7", False),
        ("255.255.255.255", "192.0.2.7", False),
    ],
)
def test_only_addresses_of_one_machine_in_a_network_are_dialled(address: str, observed: str, dialled: bool) -> None:
    said = may_dial(ipaddress.ip_address(address), ipaddress.ip_address(observed))
    assert (said == "") is dialled
