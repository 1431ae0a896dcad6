from __future__ import annotations

from pathlib import Path

import pytest

from dim_pipelines.content.embedded import EmbeddedContentStore
from dim_pipelines.content.kubo_address import parse_address
from dim_pipelines.content.open import open_store
from dim_pipelines.errors import ConfigurationError
from dim_pipelines.settings import Home


async def test_embedded_is_a_folder_of_the_home(tmp_path: Path) -> None:
    store = await open_store("embedded", Home.at(tmp_path))
    assert isinstance(store, EmbeddedContentStore)
    assert (tmp_path / "store" / "blocks.db").exists()
    await store.close()


async def test_kubo_needs_one_that_runs(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no Kubo runs") as raised:
        await open_store("kubo", Home.at(tmp_path))
    assert "dim up" in raised.value.hint


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("/ip4/127.0.0.1/tcp/5001", "/ip4/127.0.0.1/tcp/5001"),
        ("/unix/run/kubo.sock", "/unix/run/kubo.sock"),
        ("http://127.0.0.1:5001", "/ip4/127.0.0.1/tcp/5001/http"),
        ("http://localhost:5001/api/v0", "/dns/localhost/tcp/5001/http"),
        ("http://[::1]:5001/", "/ip6/::1/tcp/5001/http"),
        ("https://kubo.example", "/dns/kubo.example/tcp/443/https"),
    ],
)
def test_addresses(text: str, address: str) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text",
    ["", "embeded", "127.0.0.1:5001", "ftp://127.0.0.1:5001", "http://", "http://h:port", "http://h/x", "/unix/A.sock"],
)
async def test_an_address_that_is_none(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        await open_store(text, Home.at(tmp_path))
    assert raised.value.hint
    assert "\n" not in raised.value.message


@pytest.mark.parametrize("text", ["/ip4/127.0.0.1", "/ip4/127.0.0.1/udp/5001", "/nonsense", "/ip4/999.0.0.1/tcp/1"])
async def test_a_multiaddr_that_is_none(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigurationError):
        await open_store(text, Home.at(tmp_path))
