"""At which addresses a node may be reached: the machine's own, as far as others could dial them."""

from __future__ import annotations

import ctypes
import fcntl
import ipaddress
import socket
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from dim_pipelines.wire.address import Address

MAX_ENDPOINTS: Final = 8
"""The most endpoints of a record, and of one question to an orchestrator."""

_SIOCGIFCONF: Final = 0x8912
_ENTRY: Final = struct.calcsize("16s24x")  # struct ifreq of netdevice(7) on 64-bit Linux
_MAX_INTERFACES: Final = 256
_IPV6_TABLE: Final = Path("/proc/net/if_inet6")


def default_listen(known: Iterable[str]) -> str:
    """Say where a node listens for others when its owner did not: on all addresses, unless the network is all loopback.

    Args:
        known: addresses of the network's doors and orchestrators, `HOST:PORT`.
    """
    hosts = [Address.parse(each, secure=True).host for each in known]
    if any(":" in host and not _is_loopback(host) for host in hosts):
        return "[::]:0"
    return "127.0.0.1:0" if all(_is_loopback(host) for host in hosts) else "0.0.0.0:0"


def candidate_endpoints(listening: str, addresses: Sequence[str], advertised: Sequence[str] = ()) -> tuple[str, ...]:
    """Give the endpoints that a node offers to be tried, at most 8.

    Args:
        listening: where its server listens, with the port that it has.
        addresses: the machine's own IP addresses, those that lead to the network first.
        advertised: `HOST:PORT` that the owner gives instead: of a router that forwards, or of a name.

    Raises:
        ConfigurationError: an address is malformed.
    """
    if advertised:
        return tuple(dict.fromkeys(str(Address.parse(each, secure=True)) for each in advertised))[:MAX_ENDPOINTS]
    bound = Address.parse(listening, secure=True)
    if bound.host not in ("0.0.0.0", "::"):
        return (str(bound),)
    usable = [each for each in dict.fromkeys(addresses) if _dialable(each, ipv6=bound.host == "::")]
    return tuple(str(Address(host=each, port=bound.port)) for each in usable[:MAX_ENDPOINTS])


def local_addresses(towards: Iterable[str] = ()) -> list[str]:
    """List this machine's IP addresses: first those from which packets to the given `HOST:PORT`s leave."""
    return list(dict.fromkeys([*filter(None, map(_source, towards)), *_ipv4(), *_ipv6()]))


def _dialable(text: str, *, ipv6: bool) -> bool:
    address = ipaddress.ip_address(text)
    if address.is_loopback or address.is_link_local or address.is_unspecified or address.is_multicast:
        return False
    return ipv6 or address.version == 4


def _source(target: str) -> str:
    """Ask the kernel's routes; connecting a UDP socket sends nothing (udp(7))."""
    host = Address.parse(target, secure=True).host
    try:
        family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
    except ValueError:
        return ""  # a DNS name: asking for it may take seconds, and the interfaces are listed anyway
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))
            return str(probe.getsockname()[0])
    except OSError:
        return ""


def _ipv4() -> list[str]:
    """List the IPv4 addresses of all interfaces that are up (netdevice(7), SIOCGIFCONF)."""
    buffer = ctypes.create_string_buffer(_ENTRY * _MAX_INTERFACES)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asked = struct.pack("iL", len(buffer), ctypes.addressof(buffer))
            size = struct.unpack("iL", fcntl.ioctl(asking.fileno(), _SIOCGIFCONF, asked))[0]
    except OSError:
        return []
    return [socket.inet_ntoa(buffer.raw[at + 20 : at + 24]) for at in range(0, size, _ENTRY)]


def _ipv6() -> list[str]:
    """List the IPv6 addresses of all interfaces (proc(5), if_inet6)."""
    try:
        lines = _IPV6_TABLE.read_text().splitlines()
    except OSError:
        return []
    return [str(ipaddress.IPv6Address(bytes.fromhex(line.split()[0]))) for line in lines]


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
