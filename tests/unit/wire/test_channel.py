from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dim_pipelines.errors import ConfigurationError
from dim_pipelines.wire.channel import Address


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
