"""A home's membership: on the disk whole or not at all, never taken back, one roster for all of its processes."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dim_pipelines.domain.cid import DAG_CBOR, Cid
from dim_pipelines.domain.grant import Grant
from dim_pipelines.domain.roster import Member
from dim_pipelines.errors import (
    ConfigurationError,
    ContentNotFound,
    DimError,
    Forbidden,
    InputError,
    RecordForged,
    RolledBack,
)
from dim_pipelines.identity.authority import issue_grant, verify_grant
from dim_pipelines.identity.guard import RosterGuard
from dim_pipelines.identity.keys import load_or_create_key, public_bytes
from dim_pipelines.identity.membership import Door, Membership
from dim_pipelines.identity.roster import RosterView
from dim_pipelines.settings import Home
from dim_pipelines.testing.networks import MadeNetwork, now_ms
from dim_pipelines.wire.access import Peer


@pytest.fixture
def network(tmp_path: Path) -> MadeNetwork:
    return MadeNetwork(tmp_path / "net", addresses=["10.0.0.1:1"], doors=["10.0.0.1:2"])


def pages_on_disk(home: Home) -> set[str]:
    return {path.name for path in (home.network / "pages").iterdir()}


class TestFiles:
    def test_a_home_that_joined_knows_all_of_it_again(self, network: MadeNetwork) -> None:
        made = network.join("node", "node")
        again = Membership.load(made.home)
        assert again is not None
        assert (again.network, again.name, again.roles) == (network.id, made.name, ("node",))
        assert again.roster.signed == network.roster.signed and again.member.label == "node"
        assert again.trust_publishers and again.server() == made.server()
        (orchestrator,) = again.orchestrators()
        assert (orchestrator.name, orchestrator.label) == (network.orchestrator.name, "orchestrator")
        assert orchestrator.addresses == ("10.0.0.1:1",) and orchestrator.doors == ("10.0.0.1:2",)
        assert orchestrator.certificate == network.orchestrator.server().certificate
        assert not again.swarm_key and not again.kubo_peers and again.client("node").not_after_ms > now_ms()
        for path in made.home.network.rglob("*"):
            assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path

    def test_a_home_without_a_network_is_no_member_and_nothing_is_made(self, tmp_path: Path) -> None:
        assert Membership.load(Home.at(tmp_path / "new")) is None
        assert not (tmp_path / "new").exists()

    def test_swarm_key_peers_and_doors_are_kept(self, network: MadeNetwork, tmp_path: Path) -> None:
        made = network.join("node", "node")
        joined: dict[str, Any] = {
            "network": network.id, "name": made.name, "roles": ["node"], "signed": network.roster.signed,
            "pages": network.roster.pages, "now_ms": now_ms(),
        }  # fmt: skip
        door = Door("10.0.0.1:2", bytes(32))
        Membership.create(
            made.home, **joined, swarm_key=bytes(range(32)), kubo_peers=["/ip4/1.2.3.4"], doors=[door],
            trust_publishers=False,
        )  # fmt: skip
        again = Membership.load(made.home)
        assert again is not None and again.swarm_key == bytes(range(32)) and again.kubo_peers == ["/ip4/1.2.3.4"]
        assert again.doors == (door,) and not again.trust_publishers
        again.keep_peers([])
        assert again.kubo_peers == []
        with pytest.raises(InputError, match="32 bytes"):
            Membership.create(made.home, **joined, swarm_key=b"short")

    def test_one_home_is_in_one_network(self, network: MadeNetwork, tmp_path: Path) -> None:
        other, made = MadeNetwork(tmp_path / "other"), network.join("node", "node")
        with pytest.raises(ConfigurationError, match="member of another network") as caught:
            other.join("node", "node", home=made.home)
        assert "another DIM_HOME" in caught.value.hint
        again = Membership.load(made.home)
        assert again is not None and again.network == network.id

    def test_who_is_not_in_the_roster_has_not_joined(self, network: MadeNetwork, tmp_path: Path) -> None:
        home = Home.at(tmp_path / "stranger")
        with pytest.raises(Forbidden, match="no member"):
            Membership.create(
                home, network=network.id, name=network.id, roles=["node"], signed=network.roster.signed,
                pages=network.roster.pages, now_ms=now_ms(),
            )  # fmt: skip
        assert Membership.load(home) is None

    @pytest.mark.parametrize("file", ["network.json", "roster.cbor", "page", "peers.json", "swarm.key"])
    @pytest.mark.parametrize("damage", [b"", b"garbage", b'{"v": 2}'])
    def test_damaged_files_are_named_and_say_what_to_do(self, network: MadeNetwork, file: str, damage: bytes) -> None:
        folder = network.join("node", "node").home.network
        path = next((folder / "pages").iterdir()) if file == "page" else folder / file
        path.write_bytes(damage)
        with pytest.raises(ConfigurationError) as caught:
            read_all(Home.at(folder.parent))
        assert "join" in caught.value.hint or "update DIM" in caught.value.hint

    @pytest.mark.parametrize("file", ["roster.cbor", "page"])
    def test_missing_files_are_named(self, network: MadeNetwork, file: str) -> None:
        folder = network.join("node", "node").home.network
        (next((folder / "pages").iterdir()) if file == "page" else folder / file).unlink()
        with pytest.raises(ConfigurationError, match="missing") as caught:
            read_all(Home.at(folder.parent))
        assert "join again" in caught.value.hint


def read_all(home: Home) -> tuple[bytes, list[str]]:
    membership = Membership.load(home)
    assert membership is not None
    return membership.swarm_key, membership.kubo_peers


class TestRosters:
    def test_a_newer_one_is_kept_renews_the_guard_and_calls_back(self, network: MadeNetwork) -> None:
        node = network.join("node", "node")
        seen: list[int] = []
        end = node.on_roster(lambda view: seen.append(view.version))
        peer = Peer(network.id, "user", network.orchestrator.name)
        node.guard.check(peer)
        network.join("other", "node")
        assert node.keep_roster(network.roster.signed, network.roster.pages, now_ms())
        assert not node.keep_roster(network.roster.signed, network.roster.pages, now_ms())
        again = Membership.load(node.home)
        assert again is not None and again.roster.version == node.roster.version == 3 and seen == [3]
        assert pages_on_disk(node.home) == {str(cid) for cid in node.roster.roster.pages}
        end()
        network.revoke(node.name)
        assert node.keep_roster(network.roster.signed, network.roster.pages, now_ms()) and seen == [3]
        with pytest.raises(Forbidden, match="revoked"):
            _ = node.member

    def test_only_the_changed_pages_need_to_come(self, network: MadeNetwork) -> None:
        network.admit(
            *(
                Member(key=Cid.of(DAG_CBOR, b"%d" % n).digest, roles=("node",), owner="o", admitted_ms=1)
                for n in range(700)
            )
        )
        node = network.join("node", "node")
        had = set(node.roster.pages)
        network.revoke(node.name)
        changed = [page for page in network.roster.pages if page not in had]
        assert len(changed) == 1 < len(had)
        assert node.missing_pages(network.roster.signed) == [Cid.of(DAG_CBOR, changed[0])]
        with pytest.raises(ContentNotFound):
            node.keep_roster(network.roster.signed, [], now_ms())
        assert node.keep_roster(network.roster.signed, changed, now_ms())
        assert not node.missing_pages(network.roster.signed)

    def test_what_is_refused_changes_nothing(self, network: MadeNetwork, tmp_path: Path) -> None:
        node = network.join("node", "node")
        old = network.roster
        network.join("other", "node")
        node.keep_roster(network.roster.signed, network.roster.pages, now_ms())
        held, on_disk = node.roster, (node.home.network / "roster.cbor").read_bytes()
        foreign = MadeNetwork(tmp_path / "foreign").roster
        refused: list[tuple[bytes, tuple[bytes, ...], type[DimError]]] = [
            (old.signed, old.pages, RolledBack),
            (foreign.signed, foreign.pages, RecordForged),
            (held.signed[:-1], held.pages, RecordForged),
            (b"", (), RecordForged),
        ]
        for signed, pages, kind in refused:
            with pytest.raises(kind):
                node.keep_roster(signed, pages, now_ms())
        with pytest.raises(RolledBack):
            Membership.create(
                node.home, network=network.id, name=node.name, roles=["node"], signed=old.signed, pages=old.pages,
                now_ms=now_ms(),
            )  # fmt: skip
        assert node.roster is held and (node.home.network / "roster.cbor").read_bytes() == on_disk

    def test_the_processes_of_a_home_share_the_newest(self, network: MadeNetwork) -> None:
        one = network.join("node", "node")
        two = Membership.load(one.home)
        assert two is not None and not two.reload()
        network.join("between", "node")
        between = network.roster.signed, network.roster.pages
        network.join("other", "node")
        assert one.keep_roster(network.roster.signed, network.roster.pages, now_ms())
        newest = one.roster
        # The other process is offered one that is newer than its own and older than the home's: it learns the home's.
        older = two.roster
        assert older.version < newest.version
        with pytest.raises(RolledBack):
            two.keep_roster(*between, now_ms())
        assert two.roster.version == newest.version and two.roster is not older
        # And without an offer it follows the file.
        network.join("third", "node")
        assert one.keep_roster(network.roster.signed, network.roster.pages, now_ms())
        assert two.reload() and not two.reload()
        assert two.roster.signed == one.roster.signed

    def test_a_process_that_ends_in_the_middle_leaves_the_one_before(
        self, network: MadeNetwork, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        node = network.join("node", "node")
        before = node.roster.version
        network.join("other", "node")

        def fail(*_: Any) -> None:
            raise OSError(28, os.strerror(28))

        monkeypatch.setattr(Path, "replace", fail)
        with pytest.raises(ConfigurationError, match="No space left"):
            node.keep_roster(network.roster.signed, network.roster.pages, now_ms())
        monkeypatch.undo()
        assert node.roster.version == before
        again = Membership.load(node.home)
        assert again is not None and again.roster.version == before
        assert not list(node.home.network.rglob(".*"))
        assert again.keep_roster(network.roster.signed, network.roster.pages, now_ms())

    def test_many_processes_at_once_end_with_the_newest(self, network: MadeNetwork) -> None:
        node = network.join("node", "node")
        offers: list[RosterView] = []
        for number in range(6):
            network.join(f"other{number}", "node")
            offers.append(network.roster)
        spawn = multiprocessing.get_context("spawn")
        with spawn.Pool(3) as pool:
            pool.starmap(keep, [(node.home.root, view.signed, view.pages) for view in reversed(offers)])
        again = Membership.load(node.home)
        assert again is not None and again.roster.version == network.roster.version
        assert pages_on_disk(node.home) == {str(cid) for cid in again.roster.roster.pages}


def keep(root: Path, signed: bytes, pages: tuple[bytes, ...]) -> None:
    membership = Membership.load(Home.at(root))
    assert membership is not None
    try:
        membership.keep_roster(signed, pages, now_ms())
    except RolledBack:
        return


class TestGuard:
    def test_each_refusal_has_its_reason(self, network: MadeNetwork) -> None:
        node = network.join("node", "node")
        guard = RosterGuard(network.roster)
        good = Peer(network.id, "node", node.name)
        guard.check(good)
        for peer, reason in (
            (Peer("k51other", "node", node.name), "another network"),
            (Peer(network.id, "user", node.name), "is no user: the roster says node"),
            (Peer(network.id, "node", network.id), "no member"),
            (Peer(network.id, "node", node.name, b"issuer"), "from a CA that is in the roster no more"),
        ):
            with pytest.raises(Forbidden, match=reason):
                guard.check(peer)
        network.revoke(node.name, "gone bad")
        guard.renew(network.roster)
        with pytest.raises(Forbidden, match="gone bad"):
            guard.check(good)

    async def test_events_fire_for_whom_it_drops_and_for_nobody_else(self, network: MadeNetwork) -> None:
        node, other = network.join("node", "node", "user"), network.join("other", "node")
        guard = RosterGuard(network.roster)
        dropped, role, kept = (
            guard.revoked(Peer(network.id, kind, home.name))
            for kind, home in (("node", node), ("user", node), ("node", other))
        )
        assert not dropped.is_set() and guard.revoked(Peer(network.id, "node", node.name)) is dropped
        # A role that is taken away cuts the streams in that role alone.
        network.admit(network.roster.member(node.name).model_copy(update={"roles": ("node",)}))
        guard.renew(network.roster)
        assert role.is_set() and not dropped.is_set()
        network.revoke(node.name)
        guard.renew(network.roster)
        assert dropped.is_set() and not kept.is_set()
        assert guard.revoked(Peer(network.id, "node", node.name)).is_set(), "one that comes later is cut at once"

    async def test_peers_that_come_and_go_leave_nothing_behind(self, network: MadeNetwork) -> None:
        guard = RosterGuard(network.roster)
        held: list[asyncio.Event] = [guard.revoked(Peer(network.id, "node", f"k51{n}")) for n in range(1000)]
        assert len(guard._events) == 1000
        held.clear()
        gc.collect()
        assert len(guard._events) == 0


class TestGrants:
    def grant(self, network: str, key: Ed25519PrivateKey) -> bytes:
        grant = Grant(network=network, batch="b", epoch=1, owner="o", holder=bytes(32), not_after_ms=now_ms() + 60_000)
        return issue_grant(key, grant).encode()

    def test_orchestrators_of_the_roster_sign_grants_for_their_network_alone(self, network: MadeNetwork) -> None:
        user = network.join("user", "user", "run_host")
        roster, key = network.roster, network.key
        assert verify_grant(self.grant(network.id, key), (), now_ms(), roster).batch == "b"
        for name in ("local", "k51other"):
            with pytest.raises(Forbidden, match="does not trust"):
                verify_grant(self.grant(name, key), (), now_ms(), roster)
        with pytest.raises(Forbidden, match="does not trust"):
            verify_grant(self.grant(network.id, key), (), now_ms())
        with pytest.raises(Forbidden, match="no orchestrator"):
            verify_grant(self.grant(network.id, load_or_create_key(user.home.node_key)), (), now_ms(), roster)
        with pytest.raises(Forbidden, match="no member"):
            verify_grant(self.grant(network.id, Ed25519PrivateKey.generate()), (), now_ms(), roster)

    def test_a_revoked_orchestrator_signs_none_and_static_trust_stays(self, network: MadeNetwork) -> None:
        second = network.join("second", "orchestrator")
        key = load_or_create_key(second.home.node_key)
        verify_grant(self.grant(network.id, key), (), now_ms(), network.roster)
        network.revoke(second.name)
        with pytest.raises(Forbidden, match="was revoked"):
            verify_grant(self.grant(network.id, key), (), now_ms(), network.roster)
        assert verify_grant(self.grant("local", key), {public_bytes(key)}, now_ms(), network.roster).network == "local"
