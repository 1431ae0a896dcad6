"""Who calls: the caller's certificate, whether it is let in, and what happens when it is not.

A caller without TLS is on this machine, behind the rights of a unix socket or on loopback: it is not asked.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

import grpc
from cryptography import x509

from dim_pipelines.errors import AccessError, Forbidden, Unauthenticated
from dim_pipelines.telemetry.metrics import RpcMetrics
from dim_pipelines.wire.access import ANYBODY, METHOD_ROLES, Guard, Peer

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
_MAX_LOGGED: Final = 1024
_MAX_REASON: Final = 300
_NUMBER: Final = re.compile("[0-9]+")


@dataclass(frozen=True, slots=True)
class Shown:
    """What a caller's certificate says; times in Unix milliseconds."""

    peer: Peer
    not_before_ms: int
    not_after_ms: int


class Gate:
    """Lets callers in by method: identity, expiry, membership, role; refusals are counted, and logged once each."""

    def __init__(
        self,
        metrics: RpcMetrics,
        guard: Guard | None,
        *,
        door: bool = False,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        """Make the gate of one server.

        Args:
            metrics: where refusals are counted.
            guard: who is let in; None where the server has no TLS.
            door: whether nothing but the methods for anybody is served.
            now_ms: the clock that certificates are held against.
        """
        self._metrics, self._guard, self._door, self._now_ms = metrics, guard, door, now_ms
        self._logged: OrderedDict[tuple[str, str], None] = OrderedDict()

    def admit(self, context: Context, method: str) -> Peer | None:
        """Let a caller in or refuse it.

        Args:
            context: of the RPC.
            method: its full name.

        Returns:
            The caller whom a guard should watch; None for one that needs none (local, or a method for anybody).

        Raises:
            Unauthenticated: no certificate, none of a member, or not valid now.
            Forbidden: another network, no member, revoked, or not in a role that may call the method.
        """
        auth = context.auth_context()
        if not _speaks_tls(auth):
            return None
        who = ""
        try:
            roles = METHOD_ROLES.get(method)
            if roles == ANYBODY:
                return None
            if self._door or self._guard is None:
                raise Unauthenticated(f"{method} is not served at the door", hint="join first: dim network join INVITE")
            shown = _shown(auth)
            if shown is None:
                raise Unauthenticated("the caller showed no certificate")
            who = shown.peer.spiffe_id()
            self._check(shown, roles, method, self._guard)
        except AccessError as error:
            self.refused(method, who or context.peer() or "", error)
            raise
        return shown.peer

    def _check(self, shown: Shown, roles: frozenset[str] | None, method: str, guard: Guard) -> None:
        now, peer = self._now_ms(), shown.peer
        if now >= shown.not_after_ms:
            raise Unauthenticated(f"the client certificate ended {_ago(now - shown.not_after_ms)} ago", hint=_CLOCKS)
        if now < shown.not_before_ms:
            raise Unauthenticated(f"the client certificate begins in {_ago(shown.not_before_ms - now)}", hint=_CLOCKS)
        guard.check(peer)
        if roles is None:
            raise Forbidden(f"no role may call {method}")
        if peer.role not in roles:
            raise Forbidden(f"{method} is for {' | '.join(sorted(roles))}, and the caller came as {peer.role}")

    def refused(self, method: str, who: str, error: AccessError) -> None:
        """Count a refusal, and log it unless it was logged before."""
        service, _, name = method.removeprefix("/").rpartition("/")
        known = method in METHOD_ROLES  # the label's values are bounded: strangers do not make them up
        self._metrics.refusals.labels(service if known else "", name if known else "", error.code).inc()
        who = who.rpartition(":")[0] if who.startswith(("ipv4:", "ipv6:")) else who  # each connection has another port
        reason = error.message[:_MAX_REASON]
        key = (who, _NUMBER.sub("#", reason))  # "ended 37 s ago" is no other reason than "ended 38 s ago"
        if key in self._logged:
            self._logged.move_to_end(key)
            return
        self._logged[key] = None
        if len(self._logged) > _MAX_LOGGED:
            self._logged.popitem(last=False)
        log.warning("refused %s: %s", who or "a caller", reason)

    @contextmanager
    def watch(self, peer: Peer | None, method: str) -> Iterator[None]:
        """Cut the stream in the body when its caller is let in no more.

        The body must run in the RPC's own task, which is cancelled for it: cancelling sends no status by itself, so
        the refusal is raised for the chain to send.

        Raises:
            Forbidden: the caller was revoked meanwhile.
        """
        task = asyncio.current_task()
        if peer is None or self._guard is None or task is None:
            yield
            return
        event = self._guard.revoked(peer)
        cut = False

        async def wait() -> None:
            nonlocal cut
            await event.wait()
            cut = True
            task.cancel()

        waiting = asyncio.get_running_loop().create_task(wait())
        try:
            yield
        except asyncio.CancelledError:
            if not cut or task.uncancel() > 0:
                raise
        else:
            if not cut:
                return
            task.uncancel()  # the handler took the cancellation for its end
        finally:
            waiting.cancel()
        error = _why(self._guard, peer)
        self.refused(method, peer.spiffe_id(), error)
        raise error


_CLOCKS: Final = "renew it: dim node start does so by itself; or a clock is wrong: dim doctor"


def peer_of(context: Context) -> Peer | None:
    """Give the caller of an RPC as its certificate names it; None for a local one and for one at the door.

    In a method for anybody the caller was not checked against the roster.
    """
    auth = context.auth_context()
    try:
        shown = _shown(auth) if _speaks_tls(auth) else None
    except Unauthenticated:
        return None
    return shown.peer if shown else None


def _why(guard: Guard, peer: Peer) -> AccessError:
    try:
        guard.check(peer)
    except AccessError as error:
        return error
    return Forbidden("the caller was let in no more for a moment", hint="try again")


def _speaks_tls(auth: Any) -> bool:
    return b"ssl" in auth.get("transport_security_type", ())


def _shown(auth: Any) -> Shown | None:
    pem = auth.get("x509_pem_cert")
    return _read(bytes(pem[0])) if pem else None


@functools.lru_cache(maxsize=1024)
def _read(pem: bytes) -> Shown:
    """Read a certificate that TLS has checked against a CA; kept, because each RPC of a connection shows the same."""
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        issuer = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    except (ValueError, x509.ExtensionNotFound) as error:
        raise Unauthenticated("the client certificate is none of a member") from error
    if len(uris) != 1 or len(list(names)) != 1:  # X509-SVID, section 2: exactly one URI
        raise Unauthenticated("the client certificate does not name exactly one member")
    if not issuer:  # without it nobody could tell whether its CA is in the roster still
        raise Unauthenticated("the client certificate does not name the key of its CA")
    return Shown(
        replace(Peer.parse(uris[0]), issuer=issuer),
        _ms(certificate.not_valid_before_utc),
        _ms(certificate.not_valid_after_utc),
    )


def _ms(moment: datetime) -> int:
    return int(moment.astimezone(UTC).timestamp() * 1000)


def _ago(ms: int) -> str:
    seconds = ms // 1000
    return f"{seconds} s" if seconds < 120 else f"{seconds // 60} min"
