from __future__ import annotations

from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dim_pipelines.errors import ConfigurationError
from dim_pipelines.wire.channel import Address, open_channel
from dim_pipelines.wire.renewal import RenewingChannel


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("127.0.0.1:7000", "127.0.0.1:7000"),
        ("127.9.9.9:0", "127.9.9.9:0"),
        ("localhost:7000", "127.0.0.1:7000"),
        ("[::1]:7000", "[::1]:7000"),
        ("unix:/run/dim.sock", "unix:/run/dim.sock"),
        ("unix:///run/dim.sock", "unix:/run/dim.sock"),
        ("unix:dim.sock", "unix:dim.sock"),
    ],
)
def test_local_addresses_are_read(text: str, shown: str) -> None:
    assert str(Address.parse(text)) == shown and str(Address.parse(shown)) == shown


@pytest.mark.parametrize("text", ["0.0.0.0:7000", "10.1.2.3:7000", "example.com:7000", "[::]:7000", "[fe80::1]:7"])
def test_other_machines_are_refused_until_there_is_tls(text: str) -> None:
    with pytest.raises(ConfigurationError, match="not loopback") as caught:
        Address.parse(text)
    assert "TLS comes with a network" in caught.value.hint


@pytest.mark.parametrize(
    "text", ["", "7000", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:70000", ":7000", "unix:", "unix:" + "x" * 108]
)
def test_what_is_no_address_is_named(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"not (an address|the path)"):
        Address.parse(text)


@given(st.text(max_size=30))
def test_any_text_is_an_address_or_a_configuration_error(text: str) -> None:
    try:
        address = Address.parse(text)
    except ConfigurationError:
        return
    assert Address.parse(str(address)) == address


@pytest.mark.parametrize(
    "text", ["0.0.0.0:0", "[::]:7000", "100.64.1.2:7000", "[fd7a:115c:a1e0::1]:7000", "node-1.example.com:7000"]
)
def test_with_tls_any_machine_will_do_tailscale_too(text: str) -> None:
    assert str(Address.parse(text, secure=True)) == text


@pytest.mark.parametrize(
    "text", ["a b:7000", "-x:7000", "x-:7000", "a..b:7000", "ä.example:7000", "x" * 64 + ":7000", "h/x:1", "h:1:2:"]
)
def test_with_tls_too_a_host_is_a_host(text: str) -> None:
    with pytest.raises(ConfigurationError, match="not an address"):
        Address.parse(text, secure=True)


@given(st.text(max_size=30))
def test_any_text_is_an_address_for_tls_or_a_configuration_error(text: str) -> None:
    try:
        address = Address.parse(text, secure=True)
    except ConfigurationError:
        return
    assert Address.parse(str(address), secure=True) == address


class Shown:
    """A client certificate that may change."""

    pair = (b"key", b"one")

    def current(self) -> tuple[bytes, bytes]:
        return self.pair


async def test_a_certificate_is_shown_to_a_known_server_only() -> None:
    with pytest.raises(ConfigurationError, match="known server"):
        open_channel("127.0.0.1:1", client=Shown())


class Inner:
    """A channel that notes what is asked of it."""

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.closed: list[Any] = []

    def __getattr__(self, kind: str) -> Any:
        return lambda *given, **named: lambda *call: (self.name, kind, given, call)

    def get_state(self, try_to_connect: bool = False) -> Any:
        return (self.name, try_to_connect)

    async def close(self, grace: float | None = None) -> None:
        self.closed.append(grace)


async def test_a_renewed_certificate_makes_a_new_connection_for_the_next_rpc_of_each_kind() -> None:
    shown, made = Shown(), list[Inner]()

    def connect(pair: tuple[bytes, bytes]) -> grpc.aio.Channel:
        made.append(Inner(pair[1]))
        return made[-1]  # type: ignore[return-value]

    channel = RenewingChannel(shown.current, connect)
    calls = [
        getattr(channel, kind)("/m", 1) for kind in ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
    ]
    assert [call("x")[0] for call in calls] == [b"one"] * 4 and calls[0]("x")[1:] == ("unary_unary", ("/m", 1), ("x",))
    shown.pair = (b"key", b"two")
    assert [call("x")[0] for call in calls] == [b"two"] * 4 and len(made) == 2, "each call made a connection"
    assert channel.get_state(True) == (b"two", True)
    async with channel:
        pass
    # Closing does not wait for what the old connection still does.
    assert made[0].closed[-1] is None and made[1].closed == [None]
    shown.pair = (b"key", b"three")
    assert calls[0]("x")[0] == b"two" and len(made) == 2, "a closed channel opened a connection"
