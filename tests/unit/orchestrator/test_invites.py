"""An invite admits one member, once, until its end."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import select

from dim_pipelines.database.engine import Database, open_database
from dim_pipelines.database.tables import invites as invites_table
from dim_pipelines.domain.ipns import ipns_name
from dim_pipelines.domain.roster import Invite, Limits
from dim_pipelines.errors import Forbidden, QuotaExceeded
from dim_pipelines.orchestrator import invites as invites_module
from dim_pipelines.orchestrator.invites import Admission, Invites

NOW = 1_800_000_000_000
HOUR = 3_600_000
NETWORK = ipns_name(bytes(32))
ADA, BOB = ipns_name(b"a" * 32), ipns_name(b"b" * 32)
ADMISSION = Admission(("node", "user"), "ada", Limits(max_sessions=3))


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = open_database(f"sqlite:///{tmp_path / 'dim.db'}")
    yield opened
    opened.close()


@pytest.fixture
def invites(database: Database) -> Invites:
    return Invites(database)


def make(invites: Invites, now: int = NOW) -> Invite:
    return invites.make(NETWORK, [("192.0.2.1:1", bytes(32))], ADMISSION, lifetime_ms=HOUR, now_ms=now)


def test_an_invite_gives_what_it_was_made_for(invites: Invites) -> None:
    made = make(invites)
    assert (made.network, made.doors, made.roles, made.not_after_ms) == (
        NETWORK, ("192.0.2.1:1",), ("node", "user"), NOW + HOUR,
    )  # fmt: skip
    assert invites.take(made.id, made.secret, NETWORK, ADA, NOW) == ADMISSION


def test_an_invite_is_used_once_but_whoever_used_it_may_ask_again(invites: Invites) -> None:
    made = make(invites)
    invites.take(made.id, made.secret, NETWORK, ADA, NOW)
    with pytest.raises(Forbidden, match="used before"):
        invites.take(made.id, made.secret, NETWORK, BOB, NOW)
    again = invites.take(made.id, made.secret, NETWORK, ADA, NOW + 1)  # the first answer was lost
    assert again == replace(ADMISSION, again=True)


def test_an_invite_ends(invites: Invites) -> None:
    made = make(invites)
    with pytest.raises(Forbidden, match="ended"):
        invites.take(made.id, made.secret, NETWORK, ADA, NOW + HOUR)
    assert invites.take(made.id, made.secret, NETWORK, ADA, NOW + HOUR - 1) == ADMISSION


def test_an_unknown_invite_and_a_wrong_secret_look_alike(invites: Invites) -> None:
    made = make(invites)
    said = set()
    for id, secret in ((made.id, bytes(32)), ("unknown", made.secret), (made.id, b""), ("", b"")):
        with pytest.raises(Forbidden) as caught:
            invites.take(id, secret, NETWORK, ADA, NOW)
        said.add((caught.value.message, caught.value.hint))
    assert len(said) == 1
    with pytest.raises(Forbidden, match="another network"):
        invites.take(made.id, made.secret, ADA, ADA, NOW)
    assert invites.take(made.id, made.secret, NETWORK, ADA, NOW) == ADMISSION  # none of these used it up


def test_of_many_who_come_at_once_with_one_string_one_gets_in(invites: Invites) -> None:
    made, begin = make(invites), threading.Barrier(8)
    results: list[object] = []

    def take(number: int) -> None:
        begin.wait()
        try:
            results.append(invites.take(made.id, made.secret, NETWORK, ipns_name(bytes([number]) * 32), NOW))
        except Forbidden as error:
            results.append(error.message)

    threads = [threading.Thread(target=take, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results.count(ADMISSION) == 1
    assert sum("used before" in str(each) for each in results) == 7


def test_an_invite_that_came_to_nothing_is_given_back_by_its_taker_only(invites: Invites) -> None:
    made = make(invites)
    invites.take(made.id, made.secret, NETWORK, ADA, NOW)
    invites.give_back(made.id, BOB)
    with pytest.raises(Forbidden, match="used before"):
        invites.take(made.id, made.secret, NETWORK, BOB, NOW)
    invites.give_back(made.id, ADA)
    assert invites.take(made.id, made.secret, NETWORK, BOB, NOW) == ADMISSION


def test_the_table_keeps_no_secret_and_is_bounded(
    invites: Invites, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(invites)
    with database.read() as connection:
        row = connection.execute(select(invites_table)).mappings().one()
    assert made.secret not in [bytes(value) for value in row.values() if isinstance(value, bytes)]
    monkeypatch.setattr(invites_module, "MAX_OPEN", 2)
    make(invites)
    with pytest.raises(QuotaExceeded):
        make(invites)
    make(invites, NOW + HOUR)  # the others have ended
    make(invites, NOW + HOUR + invites_module.KEPT_MS + 1)
    with database.read() as connection:
        assert len(connection.execute(select(invites_table)).all()) == 2
