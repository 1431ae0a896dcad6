"""Every method has its roles; callers are named by SPIFFE ids; refusals are logged once, in bounded memory."""

from __future__ import annotations

import asyncio
import logging
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

import dim_pipelines.wire.v1
from dim_pipelines.domain.roster import ROLES
from dim_pipelines.errors import Forbidden, Unauthenticated
from dim_pipelines.telemetry.metrics import RpcMetrics
from dim_pipelines.testing.networks import MadeNetwork, now_ms
from dim_pipelines.wire import callers
from dim_pipelines.wire.access import METHOD_ROLES, Peer
from dim_pipelines.wire.callers import Gate, peer_of

PROTOS = Path(next(iter(dim_pipelines.wire.v1.__path__)))


def methods() -> set[str]:
    found: set[str] = set()
    for path in PROTOS.glob("*.proto"):
        text = re.sub(r"//.*", "", path.read_text(encoding="utf-8"))
        (package,) = re.findall(r"^package\s+([\w.]+);", text, re.MULTILINE)
        for service, body in re.findall(r"^service\s+(\w+)\s*\{(.*?)^\}", text, re.MULTILINE | re.DOTALL):
            found |= {f"/{package}.{service}/{name}" for name in re.findall(r"\brpc\s+(\w+)", body)}
    return found


def test_every_method_of_every_service_has_its_roles_and_no_other() -> None:
    ours = {name for name in METHOD_ROLES if name.startswith("/dim.")}
    assert methods() == ours and len(ours) >= 17


def test_only_joining_is_for_anybody() -> None:
    assert [name for name, roles in METHOD_ROLES.items() if not roles] == ["/dim.v1.OrchestratorService/Join"]
    assert all(roles <= set(ROLES) for roles in METHOD_ROLES.values())


@given(st.text(st.characters(exclude_characters="/"), min_size=1), st.sampled_from(ROLES), st.text("abk51", min_size=1))
def test_spiffe_ids_are_read_as_they_were_written(network: str, role: Any, name: str) -> None:
    peer = Peer(network, role, name)
    assert Peer.parse(peer.spiffe_id()) == peer


@pytest.mark.parametrize(
    "text",
    ["", "spiffe://", "spiffe://n/node", "spiffe://n/node/a/b", "spiffe://n//a", "spiffe://n/root/a", "n/node/a"],
)
def test_what_is_no_members_id_is_refused(text: str) -> None:
    with pytest.raises(Unauthenticated, match="not the id of a member"):
        Peer.parse(text)


class Call:
    """The part of a gRPC context that a gate looks at."""

    def __init__(self, auth: dict[str, Any], peer: str = "ipv4:10.0.0.9:1000") -> None:
        self._auth, self._peer = auth, peer

    def auth_context(self) -> dict[str, Any]:
        return self._auth

    def peer(self) -> str:
        return self._peer


TLS = {"transport_security_type": [b"ssl"]}


def gate(guard: Any = None, **options: Any) -> tuple[Gate, CollectorRegistry]:
    registry = CollectorRegistry()
    return Gate(RpcMetrics(registry), guard, **options), registry


class Open:
    def check(self, peer: Peer) -> None: ...

    def revoked(self, peer: Peer) -> asyncio.Event:
        return asyncio.Event()


def test_every_method_is_served_to_its_roles_and_to_no_other(tmp_path: Path) -> None:
    network = MadeNetwork(tmp_path)
    everything = network.join("all", *ROLES)
    made, _ = gate(everything.guard)
    for role in ROLES:
        auth = {**TLS, "x509_pem_cert": [everything.client(role).current()[1]]}
        for method, roles in METHOD_ROLES.items():
            if roles and role not in roles:
                with pytest.raises(Forbidden, match=f"as {role}"):
                    made.admit(Call(auth), method)  # type: ignore[arg-type]
            else:
                peer = made.admit(Call(auth), method)  # type: ignore[arg-type]
                assert peer is None if not roles else peer is not None and peer.role == role


@pytest.mark.parametrize(
    ("off_ms", "reason"),
    [(-10 * 60_000 + 5000, ""), (-11 * 60_000, "begins in"), (23 * 3_600_000, ""), (24 * 3_600_000 + 5000, "ended")],
)
def test_a_certificate_holds_from_ten_minutes_before_its_issue_for_a_day(
    tmp_path: Path, off_ms: int, reason: str
) -> None:
    """So a server whose clock is less than 10 minutes off takes it, and one further off names the clocks."""
    network = MadeNetwork(tmp_path)
    issued = now_ms()
    made, _ = gate(network.orchestrator.guard, now_ms=lambda: issued + off_ms)
    call = Call({**TLS, "x509_pem_cert": [network.orchestrator.client("user").current()[1]]})
    if not reason:
        assert made.admit(call, "/dim.v1.NodeService/DescribeNode")  # type: ignore[arg-type]
        return
    with pytest.raises(Unauthenticated, match=reason) as caught:
        made.admit(call, "/dim.v1.NodeService/DescribeNode")  # type: ignore[arg-type]
    assert "clock" in caught.value.hint


def test_a_server_with_tls_but_without_a_guard_lets_nobody_in() -> None:
    made, _ = gate()
    with pytest.raises(Unauthenticated):
        made.admit(Call(TLS), "/dim.v1.NodeService/Work")  # type: ignore[arg-type]


def test_a_certificate_that_is_nobodys_is_no_certificate() -> None:
    made, registry = gate(Open())
    for auth in (TLS, {**TLS, "x509_pem_cert": [b"-----BEGIN CERTIFICATE-----"]}):
        with pytest.raises(Unauthenticated):
            made.admit(Call(auth), "/dim.v1.NodeService/Work")  # type: ignore[arg-type]
        assert peer_of(Call(auth)) is None  # type: ignore[arg-type]
    labels = {"service": "dim.v1.NodeService", "method": "Work", "reason": "unauthenticated"}
    assert registry.get_sample_value("dim_rpc_refusals_total", labels) == 2


def test_a_certificate_that_does_not_name_its_cas_key_is_refused(tmp_path: Path) -> None:
    """By that key the guard knows whether the CA is in the roster still."""
    key = ec.generate_private_key(ec.SECP256R1())
    uri = x509.UniformResourceIdentifier(Peer("n", "node", "k51").spiffe_id())
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([]))
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([uri]), True)
        .add_extension(x509.AuthorityKeyIdentifier(None, [x509.DNSName("ca")], 1), False)
        .sign(key, hashes.SHA256())
    )
    open_gate, _ = gate(Open())
    auth = {**TLS, "x509_pem_cert": [made.public_bytes(serialization.Encoding.PEM)]}
    with pytest.raises(Unauthenticated, match="the key of its CA"):
        open_gate.admit(Call(auth), "/dim.v1.NodeService/DescribeNode")  # type: ignore[arg-type]


def test_refusals_are_logged_once_each_whatever_the_port_and_forgotten_in_time(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr(callers, "_MAX_LOGGED", 100)
    made, registry = gate(Open())
    for port in range(50):
        with pytest.raises(Unauthenticated):
            made.admit(Call(TLS, f"ipv4:10.0.0.9:{port}"), "/dim.v1.NodeService/Work")  # type: ignore[arg-type]
    assert len(caplog.records) == 1
    for seconds in range(50):
        made.refused("/a.stranger/came-late", "spiffe://n/node/late", Unauthenticated(f"ended {seconds} s ago"))
    assert len(caplog.records) == 2
    for number in range(10_000):
        made.refused("/a.stranger/made-this-up", f"spiffe://n/node/{number}", Forbidden("no " + "x" * 10_000))
    assert len(made._logged) == 100
    assert max(len(record.getMessage()) for record in caplog.records) < 1000
    labels = {"service": "", "method": "", "reason": "forbidden"}
    assert registry.get_sample_value("dim_rpc_refusals_total", labels) == 10_000


async def test_a_cut_ends_a_body_that_swallows_the_cancellation_and_spares_one_that_was_cancelled_otherwise() -> None:
    event = asyncio.Event()

    class Cutting(Open):
        def check(self, peer: Peer) -> None:
            raise Forbidden("revoked: it lied")

        def revoked(self, peer: Peer) -> asyncio.Event:
            return event

    made, _ = gate(Cutting())
    peer = Peer("n", "node", "k")
    began = asyncio.Event()

    async def stream(swallow: bool) -> None:
        with made.watch(peer, "/dim.v1.NodeService/Work"):
            began.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if not swallow:
                    raise

    for swallow in (True, False):
        event.clear()
        began.clear()
        task = asyncio.create_task(stream(swallow))
        await began.wait()
        event.set()
        with pytest.raises(Forbidden, match="it lied"):
            await task
    event.clear()
    began.clear()
    task = asyncio.create_task(stream(False))
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
