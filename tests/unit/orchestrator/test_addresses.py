"""Where an orchestrator listens, and what others are told."""

from __future__ import annotations

import socket

import pytest

from dim_pipelines.errors import ConfigurationError
from dim_pipelines.orchestrator.addresses import advertised, remembered


def test_port_0_is_the_port_of_before_where_it_is_free() -> None:
    with socket.socket() as busy, socket.socket() as freed:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        freed.bind(("127.0.0.1", 0))
        taken, free = busy.getsockname()[1], freed.getsockname()[1]
        freed.close()
        assert remembered("127.0.0.1:0", [f"192.0.2.1:{taken}", f"192.0.2.1:{free}"]) == f"127.0.0.1:{free}"
        assert remembered("127.0.0.1:0", [f"192.0.2.1:{taken}"]) == "127.0.0.1:0"
        assert remembered("127.0.0.1:0", []) == "127.0.0.1:0"
        assert remembered("127.0.0.1:7", [f"192.0.2.1:{free}"]) == "127.0.0.1:7"


def test_others_are_told_where_it_listens_or_what_the_operator_says() -> None:
    assert advertised("100.64.0.7:4443", []) == ("100.64.0.7:4443",)
    assert advertised("0.0.0.0:4443", ["dim.example.org"]) == ("dim.example.org:4443",)
    assert advertised("0.0.0.0:4443", ["192.0.2.1:80", "192.0.2.1:80"]) == ("192.0.2.1:80",)
    assert advertised("[::]:4443", ["2001:db8::1", "[2001:db8::2]", "[2001:db8::3]:5"]) == (
        "[2001:db8::1]:4443", "[2001:db8::2]:4443", "[2001:db8::3]:5",
    )  # fmt: skip
    for everywhere in ("0.0.0.0:1", "[::]:1"):
        with pytest.raises(ConfigurationError) as caught:
            advertised(everywhere, [])
        assert "--advertise" in caught.value.hint
    with pytest.raises(ConfigurationError):
        advertised("127.0.0.1:1", ["not an address"])
