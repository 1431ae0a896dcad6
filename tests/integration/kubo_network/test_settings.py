"""How a Kubo for DIM is set up: its secret, its ports, its peers, and the network it belongs to."""

from __future__ import annotations

import json
import secrets
import socket
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil
import pytest

from dim_pipelines.content.kubo import KuboContentStore
from dim_pipelines.content.kubo_address import SECRET_VARIABLE, find_secret, keep_secret
from dim_pipelines.content.kubo_daemon import KuboDaemon
from dim_pipelines.content.kubo_http import KuboHttp
from dim_pipelines.content.kubo_repository import read_swarm_key
from dim_pipelines.content.open import open_store
from dim_pipelines.discovery.network_kubo import start_kubo, swarm_listen
from dim_pipelines.discovery.open_names import open_names
from dim_pipelines.errors import ConfigurationError, NameUnresolved
from dim_pipelines.identity.membership import Membership
from dim_pipelines.settings import Home
from dim_pipelines.testing.node_records import NAME, NETWORK, NODE, NOW, member, roster

Eventually = Callable[[Callable[[], Awaitable[object]]], Awaitable[None]]
VIEW = roster(member(NODE, "orchestrator", "node"))


def join(home: Home, role: str, peers: tuple[str, ...] = (), key: bytes = b"k" * 32) -> Membership:
    return Membership.create(
        home, network=NETWORK, name=NAME, roles=(role,), signed=VIEW.signed, pages=VIEW.pages, now_ms=NOW,
        swarm_key=key, kubo_peers=peers,
    )  # fmt: skip


async def peers_of(daemon: KuboDaemon) -> list[str]:
    answer = json.loads(await KuboHttp(daemon.address).call("swarm/peers", timeout_s=20))
    return [each["Peer"] for each in answer["Peers"] or []]


async def test_its_rpc_asks_for_the_secret_that_the_home_knows(
    ipfs_binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, elsewhere = Home.at(tmp_path / "home"), Home.at(tmp_path / "elsewhere")
    monkeypatch.delenv(SECRET_VARIABLE, raising=False)
    daemon = await KuboDaemon.start(home.root / "kubo", ipfs_binary)
    try:
        secret = home.root / "kubo" / "dim-secret"
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600
        assert secret.read_text() == daemon.secret
        keep_secret(daemon.address, None)  # as in any other process
        for stranger in (elsewhere, Home.at(tmp_path)):
            with pytest.raises(ConfigurationError, match="does not let us in") as raised:
                await KuboHttp(daemon.address, stranger).call("id", timeout_s=20)
            assert SECRET_VARIABLE in raised.value.hint
            with pytest.raises(ConfigurationError, match="does not let us in"):
                await KuboContentStore.connect(daemon.address, home=stranger)
        for friend in (home, Home.at(home.nodes / "local-1")):  # a local node's home is part of it
            assert await KuboHttp(daemon.address, friend).call("id", timeout_s=20)
            await (await open_store(daemon.address, friend)).close()
        names = open_names("kubo", home)
        with pytest.raises(NameUnresolved):
            await names.get(NAME, 1.0)
        await names.close()
        monkeypatch.setenv(SECRET_VARIABLE, daemon.secret)  # for a Kubo of somebody else
        assert await KuboHttp(daemon.address, elsewhere).call("id", timeout_s=20)
        monkeypatch.setenv(SECRET_VARIABLE, "wrong")
        with pytest.raises(ConfigurationError, match="does not let us in"):
            await KuboHttp(daemon.address, elsewhere).call("id", timeout_s=20)
    finally:
        await daemon.stop()
    assert find_secret("/ip4/127.0.0.1/tcp/1", home) == "wrong"


async def test_it_keeps_its_ports_and_takes_others_where_they_are_taken(ipfs_binary: Path, tmp_path: Path) -> None:
    repository = tmp_path / "kubo"
    seen: list[tuple[str, tuple[str, ...]]] = []
    for _ in range(2):
        daemon = await KuboDaemon.start(repository, ipfs_binary)
        seen.append((daemon.address, daemon.swarm_addresses))
        await daemon.stop()
    assert seen[0] == seen[1]
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", int(seen[0][0].rpartition("/")[2])))
        taken.listen()
        daemon = await KuboDaemon.start(repository, ipfs_binary)
        try:
            assert daemon.address != seen[0][0]
            assert daemon.swarm_addresses == seen[0][1]
        finally:
            await daemon.stop()


async def test_one_that_only_dials_out_listens_on_its_rpc_alone(
    ipfs_binary: Path, tmp_path: Path, eventually: Eventually
) -> None:
    hub = await KuboDaemon.start(tmp_path / "a" / "kubo", ipfs_binary)
    spoke = await KuboDaemon.start(
        tmp_path / "b" / "kubo", ipfs_binary, swarm_key=hub.swarm_key, peers=hub.swarm_addresses, listen=()
    )
    try:
        listening = [
            connection.laddr.port
            for connection in psutil.Process(spoke.pid).net_connections(kind="inet")
            if connection.status == psutil.CONN_LISTEN
        ]
        assert listening == [int(spoke.address.rpartition("/")[2])]
        assert spoke.swarm_addresses == ()

        async def together() -> bool:
            return len(await peers_of(hub)) == len(await peers_of(spoke)) == 1

        await eventually(together)
    finally:
        await spoke.stop()
        await hub.stop()


async def test_another_swarm_key_keeps_strangers_out_and_peers_may_be_added(
    ipfs_binary: Path, tmp_path: Path, eventually: Eventually
) -> None:
    one = await KuboDaemon.start(tmp_path / "a" / "kubo", ipfs_binary)
    stranger = await KuboDaemon.start(
        tmp_path / "b" / "kubo", ipfs_binary, swarm_key=secrets.token_hex(32), peers=one.swarm_addresses
    )
    friend = await KuboDaemon.start(tmp_path / "c" / "kubo", ipfs_binary, swarm_key=one.swarm_key)
    try:
        await friend.add_peers(one.swarm_addresses)

        async def together() -> bool:
            return await peers_of(friend) == [one.swarm_addresses[0].rpartition("/")[2]]

        await eventually(together)
        assert len(await peers_of(one)) == 1
        assert await peers_of(stranger) == []
        config = json.loads((tmp_path / "c" / "kubo" / "config").read_text())
        assert config["Peering"]["Peers"][0]["Addrs"]  # also after a restart
    finally:
        for daemon in (one, stranger, friend):
            await daemon.stop()


async def test_a_members_kubo_is_part_of_its_networks_swarm(
    ipfs_binary: Path, tmp_path: Path, eventually: Eventually
) -> None:
    first, second = Home.at(tmp_path / "first"), Home.at(tmp_path / "second")
    orchestrator = join(first, "orchestrator")
    hub = await start_kubo(first, binary=ipfs_binary)
    daemons = [hub]
    try:
        assert read_swarm_key(first.root / "kubo") == (b"k" * 32).hex()
        assert orchestrator.kubo_peers == list(hub.swarm_addresses)  # what those who join are told
        join(second, "node", tuple(orchestrator.kubo_peers))
        daemons.append(await start_kubo(second, binary=ipfs_binary))

        async def together() -> bool:
            return len(await peers_of(daemons[1])) == 1

        await eventually(together)
        assert Membership.load(second).kubo_peers == orchestrator.kubo_peers  # type: ignore[union-attr]
    finally:
        for daemon in daemons:
            await daemon.stop()


@pytest.mark.parametrize(
    ("address", "listen"),
    [
        ("", None),
        ("127.0.0.1:0", None),
        ("[::1]:7000", None),
        ("lab.example:7000", None),
        ("10.0.0.1:7000", ("/ip4/10.0.0.1/tcp/0",)),
        ("100.64.0.3:7000", ("/ip4/100.64.0.3/tcp/0",)),
        ("0.0.0.0:7000", ("/ip4/0.0.0.0/tcp/0",)),
        ("[fd00::1]:7000", ("/ip6/fd00::1/tcp/0",)),
    ],
)
def test_an_orchestrators_kubo_is_heard_where_the_orchestrator_is(address: str, listen: tuple[str, ...] | None) -> None:
    assert swarm_listen(address) == listen


async def test_where_the_peers_are_elsewhere_it_only_dials_out(ipfs_binary: Path, tmp_path: Path) -> None:
    home = Home.at(tmp_path)
    join(home, "node", ("/ip4/100.64.0.1/tcp/4001/p2p/12D3KooWQ1avnj4PYBQUiKkW1hYENiw6PAQWhSLV7HsJxWe7V7HH",))
    daemon = await start_kubo(home, binary=ipfs_binary)
    try:
        assert daemon.swarm_addresses == ()
    finally:
        await daemon.stop()


@pytest.mark.parametrize("peer", ["", "10.0.0.1:4001", "/ip4/10.0.0.1/tcp/4001", "/ip4/1.2.3.4/tcp/1/p2p/", "x/p2p/y"])
async def test_what_is_no_peer_is_refused_before_anything_starts(tmp_path: Path, peer: str) -> None:
    with pytest.raises(ConfigurationError, match="not the address of a Kubo"):
        await KuboDaemon.start(tmp_path / "kubo", Path("/bin/false"), peers=[peer])
    assert not (tmp_path / "kubo").exists()
