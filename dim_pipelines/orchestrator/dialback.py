"""Whether a member's server can be reached from here: its endpoints are dialled, and have to show its certificate.

A member that asks this makes the orchestrator connect to where it says, so what may be dialled is narrow (never this
machine, link-local or multicast addresses, where cloud metadata and routers live), what is sent is one TLS handshake,
and what is told is whether the answer was the member's own certificate: of a stranger's server nothing is learnt.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from dim_pipelines.bus.rate_limit import RateLimit
from dim_pipelines.errors import ConfigurationError, DimError, InputError, QuotaExceeded
from dim_pipelines.wire.address import Address
from dim_pipelines.wire.tls import certificate_hash, fetch_certificate

MAX_ENDPOINTS: Final = 8
DIAL_S: Final = 3.0
RATE: Final = 0.2
"""Probes a second of one member; it asks on a change, and every ten minutes."""
BURST: Final = 5.0
AT_ONCE: Final = 32
_CERTIFICATE_BYTES: Final = 4096

_Ip = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Reached:
    """Which endpoints showed the certificate, and why the others did not, for people."""

    endpoints: tuple[str, ...]
    reason: str


class DialBack:
    """Dials members' endpoints."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Begin; `clock` gives seconds of a monotonic clock."""
        self._rates: RateLimit[str] = RateLimit(RATE, BURST, clock)
        self._slots = asyncio.Semaphore(AT_ONCE)

    async def probe(self, caller: str, observed: str, endpoints: Sequence[str], certificate: bytes) -> Reached:
        """Dial endpoints.

        Args:
            caller: IPNS name of the member that asks.
            observed: the IP address it calls from; empty where that is unknown.
            endpoints: `HOST:PORT` of its server.
            certificate: DER that they must show.

        Raises:
            InputError: more than 8 endpoints, or no certificate.
            QuotaExceeded: it asks too often.
        """
        if len(endpoints) > MAX_ENDPOINTS:
            raise InputError(f"{len(endpoints)} endpoints are too many: {MAX_ENDPOINTS} is the most")
        if not 0 < len(certificate) <= _CERTIFICATE_BYTES:
            raise InputError("the certificate that the endpoints show is missing or too large")
        if not self._rates.allows(caller):
            raise QuotaExceeded("too many probes", hint=f"one every {1 / RATE:.0f} s")
        wanted = list(dict.fromkeys(endpoints))
        expected = certificate_hash(certificate)
        said = await asyncio.gather(*(self._dial(endpoint, observed, expected) for endpoint in wanted))
        reached = tuple(endpoint for endpoint, why in zip(wanted, said, strict=True) if not why)
        return Reached(reached, "; ".join(why for why in said if why))

    async def _dial(self, endpoint: str, observed: str, expected: bytes) -> str:
        """Dial one endpoint and give why it failed; empty when it showed the certificate."""
        async with self._slots:
            try:
                async with asyncio.timeout(DIAL_S):
                    target = await _resolved(endpoint, observed)
                    await fetch_certificate(target, expected)
            except TimeoutError:
                return f"{endpoint}: no answer in {DIAL_S:g} s"
            except ConfigurationError as error:
                return f"{endpoint}: {error.message}"
            except DimError:
                return f"{endpoint}: it does not show the certificate"
        return ""


def may_dial(address: _Ip, observed: _Ip | None) -> str:
    """Say why an address is not dialled for a member that calls from `observed`; empty when it is."""
    if address == observed:
        return ""
    if address.is_loopback:
        return "" if observed is not None and observed.is_loopback else "a loopback address of another machine"
    if address.is_unspecified or address.is_multicast or address.is_link_local or _reserved(address):
        return "not an address of one machine in a network"
    mapped = getattr(address, "ipv4_mapped", None)
    return may_dial(mapped, observed) if mapped is not None else ""


def _reserved(address: _Ip) -> bool:
    # ::ffff:0:0/96 and 64:ff9b::/96 are "reserved" for Python, though an IPv4 address stands in them
    return address.is_reserved and getattr(address, "ipv4_mapped", None) is None


async def _resolved(endpoint: str, observed: str) -> str:
    """Give the address to dial.

    Raises:
        ConfigurationError: malformed, unknown, or one that is not dialled.
    """
    where = Address.parse(endpoint, secure=True)
    if where.path or not where.port:
        raise ConfigurationError("not HOST:PORT")
    try:
        found = await asyncio.get_running_loop().getaddrinfo(where.host, where.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ConfigurationError("the name is not known here") from error
    caller = ipaddress.ip_address(observed) if observed else None
    host = str(found[0][4][0])
    if why := may_dial(ipaddress.ip_address(host.partition("%")[0]), caller):
        raise ConfigurationError(why)
    return str(Address(host=host, port=where.port))
