"""A home without an orchestrator finds the nodes of its network itself: by name, and by asking whether they answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from dim_pipelines.database.engine import Database, open_database
from dim_pipelines.discovery.node_table import NodeTable
from dim_pipelines.discovery.open_names import open_names
from dim_pipelines.discovery.record import make_node_record
from dim_pipelines.dispatch.open_pool import open_pool
from dim_pipelines.domain.advertisement import Advertisement, RecordFields
from dim_pipelines.errors import ConfigurationError
from dim_pipelines.identity.keys import load_or_create_key
from dim_pipelines.identity.membership import Membership
from dim_pipelines.orchestrator.meeting_point import OrchestratorAddress
from dim_pipelines.orchestrator.survey import Survey
from dim_pipelines.scheduling.attendance import Presence
from dim_pipelines.settings import Home
from dim_pipelines.telemetry.metrics import RpcMetrics
from dim_pipelines.testing.networks import MadeNetwork
from dim_pipelines.wire.server import RpcServer, SecureListener
from dim_pipelines.wire.tls import ServerTls


@asynccontextmanager
async def _answering(node: Membership) -> AsyncIterator[str]:
    """Serve nothing but health, with the node's own certificate, to members only; gives `HOST:PORT`."""
    tls = ServerTls(node.server(), lambda: node.roster.client_cas(), node.guard)
    server = await RpcServer.start(
        "",
        lambda server: (),
        RpcMetrics(CollectorRegistry()),
        secure=SecureListener("127.0.0.1:0", tls),
    )
    try:
        yield server.secure_address
    finally:
        await server.stop(0)


@dataclass
class Place:
    network: MadeNetwork
    node: Membership
    database: Database

    @property
    def home(self) -> Home:
        return self.network.orchestrator.home

    @property
    def table(self) -> NodeTable:
        return NodeTable(self.database)

    def survey(self) -> Survey:
        return Survey(self.network.orchestrator, self.table, "embedded")

    async def publish(self, *endpoints: str) -> None:
        """Put the node's record where the home looks for names."""
        key, now = load_or_create_key(self.node.home.node_key), time.time_ns() // 1_000_000
        fields = RecordFields(
            network=self.network.id,
            boot=bytes(16),
            issued_ms=now,
            reach="direct",
            endpoints=endpoints,
            certificate=self.node.server().certificate,
            advertisement=Advertisement(
                label="ann", version="1", devices=(), numerics={"echo": "1"}, max_input_bytes=1, max_sessions=1
            ).encode(),
        )
        names = open_names("embedded", self.home)
        await names.put(self.node.name, make_node_record(key, fields, now, now))
        await names.close()

    def state(self) -> tuple[str, str]:
        row = self.table.row(self.node.name)
        return ("", "") if row is None else (row.state, row.reason)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    network = MadeNetwork(tmp_path)
    node = network.join("ann", "node")
    return Place(network, node, open_database(network.orchestrator.home.database_url))


async def test_a_node_is_found_by_name_and_asked_and_its_end_is_noticed(place: Place) -> None:
    survey = place.survey()
    async with _answering(place.node) as address:
        await place.publish(address)
        said = await survey.look(20)
        assert place.state() == ("ELIGIBLE", ""), said
        assert said == "asked for 1 records; 1 new by ipns; 1 ELIGIBLE"
        again = await survey.look(20)
        assert again == "asked for 0 records; 1 ELIGIBLE"  # its record is fresh
    await survey.look(20)
    state, reason = place.state()
    assert (state, reason.split(":")[0]) == ("SUSPECT", "it does not answer health checks")
    await survey.close()


async def test_a_batch_for_which_nobody_keeps_the_table_looks_itself(place: Place) -> None:
    survey = Survey.of(place.home, "embedded")
    assert survey is not None
    pool = await open_pool(place.home, ["network"], survey.look_where_nobody_does)
    async with _answering(place.node) as address:
        await place.publish(address)
        async with asyncio.timeout(60):
            while not (looked := await pool.look()) or looked[0].presence is not Presence.READY:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    assert (looked[0].id, looked[0].state) == (place.node.name, "ELIGIBLE")
    await pool.close()
    await survey.close()


async def test_where_an_orchestrator_runs_it_alone_looks(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    here = OrchestratorAddress(1, "name", place.network.id, "127.0.0.1:1", "127.0.0.1:2")
    monkeypatch.setattr("dim_pipelines.orchestrator.survey.find_orchestrator", lambda home: here)
    await place.publish("127.0.0.1:1")
    survey = place.survey()
    assert await survey.look_where_nobody_does(5) == "the orchestrator that runs here knows of none"
    assert place.state() == ("", "")
    assert Survey.of(Home.at(place.home.root / "none"), "embedded") is None


async def test_a_node_that_nothing_listens_for_is_not_eligible(place: Place) -> None:
    await place.publish("127.0.0.1:1")
    survey = place.survey()
    said = await survey.look(1.0)

    assert place.state()[0] == "VERIFIED", said
    await survey.close()


async def test_somebody_else_at_the_nodes_address_does_not_pass_for_it(place: Place) -> None:
    other = place.network.join("ben", "node")
    async with _answering(other) as address:
        await place.publish(address)
        survey = place.survey()
        await survey.look(3.0)
        assert place.state()[0] == "VERIFIED"
        await survey.close()


async def test_a_look_ends_in_its_time_though_a_name_is_never_answered(place: Place) -> None:
    class Silent:
        async def put(self, name: str, record: bytes) -> None:
            raise NotImplementedError

        async def get(self, name: str, timeout_s: float = 5.0) -> bytes:
            await asyncio.Event().wait()
            return b""

        async def close(self) -> None:
            """Hold nothing."""

    survey = place.survey()
    survey._names = Silent()
    async with asyncio.timeout(60):  # it would wait for ever
        assert await survey.look(0.5) == "no nodes"


async def test_a_home_whose_names_cannot_be_opened_says_so_and_goes_on(place: Place) -> None:
    survey = Survey(place.network.orchestrator, place.table, "kubo")
    said = await survey.look(5)

    assert "Kubo" in said
    assert said.endswith("asked for 0 records; no nodes")


async def test_a_home_without_a_certificate_cannot_ask(place: Place) -> None:
    for file in place.home.network.glob("client-*.crt"):
        file.unlink()
    with pytest.raises(ConfigurationError, match="no client certificate"):
        await place.survey().look(5)
