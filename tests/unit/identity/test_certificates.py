"""Certificates: names, lives, keys of their own, renewed before their end and taken up without a restart."""

from __future__ import annotations

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from dim_pipelines.errors import ConfigurationError, InputError, Unauthenticated
from dim_pipelines.identity import certificates, p256
from dim_pipelines.identity.certificates import (
    check_client,
    client_public_key,
    key_identifier,
    load_client,
    load_or_create_ca,
    load_or_create_server,
    server_name,
    store_client,
)
from dim_pipelines.identity.keys import load_or_create_key
from dim_pipelines.settings import Home
from dim_pipelines.testing.networks import now_ms
from dim_pipelines.wire.access import Peer

NAME = "k51" + "a" * 59
PEER = Peer("k51net", "node", NAME)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.at(tmp_path / "home")


class Later(datetime):
    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return datetime.now(tz) - timedelta(days=340)


class TestServer:
    def test_it_is_made_once_for_one_name_and_only_its_owner_reads_it(self, home: Home) -> None:
        made = load_or_create_server(home, NAME)
        assert load_or_create_server(home, NAME) == made and server_name(made.certificate) == NAME
        for path in (home.keys / "server.key", home.network / "server.crt"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        parsed = x509.load_der_x509_certificate(made.certificate)
        assert timedelta(days=365) <= parsed.not_valid_after_utc - parsed.not_valid_before_utc < timedelta(days=366)
        assert isinstance(parsed.public_key(), ec.EllipticCurvePublicKey)
        assert len(made.certificate) < 500, "it travels in every record"

    def test_another_name_or_another_key_makes_another(self, home: Home) -> None:
        made = load_or_create_server(home, NAME)
        other = load_or_create_server(home, "k51" + "b" * 59)
        assert other.key_pem == made.key_pem and other.certificate != made.certificate
        (home.keys / "server.key").unlink()
        assert load_or_create_server(home, "k51" + "b" * 59).certificate != other.certificate

    def test_it_is_made_anew_thirty_days_before_its_end(self, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(p256, "datetime", Later)
        old = load_or_create_server(home, NAME)  # has 25 days left
        monkeypatch.undo()
        fresh = load_or_create_server(home, NAME)
        assert fresh.certificate != old.certificate and fresh.key_pem == old.key_pem
        assert load_or_create_server(home, NAME) == fresh

    @pytest.mark.parametrize("file", ["keys/server.key", "network/server.crt"])
    def test_damaged_files_are_named(self, home: Home, file: str) -> None:
        load_or_create_server(home, NAME)
        (home.root / file).write_bytes(b"garbage")
        with pytest.raises(ConfigurationError, match=Path(file).name):
            load_or_create_server(home, NAME)

    def test_a_certificate_without_one_name_is_refused(self, home: Home) -> None:
        with pytest.raises(InputError):
            server_name(b"garbage")
        with pytest.raises(InputError, match="exactly one"):
            server_name(load_or_create_ca(home, "n", NAME).certificate)


class TestClients:
    def test_one_names_one_member_in_one_role_for_a_day(self, home: Home) -> None:
        ca = load_or_create_ca(home, "k51net", NAME)
        now = now_ms()
        issued = x509.load_der_x509_certificate(ca.issue(client_public_key(home), PEER, now))
        names = list(issued.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
        assert names == [x509.UniformResourceIdentifier(f"spiffe://k51net/node/{NAME}")]
        assert abs(issued.not_valid_after_utc.timestamp() * 1000 - now - 24 * 3_600_000) < 2000
        assert abs(now - issued.not_valid_before_utc.timestamp() * 1000 - 600_000) < 2000
        assert not issued.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        authority = issued.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
        assert authority.key_identifier == key_identifier(ca.certificate)
        assert load_or_create_ca(home, "k51net", NAME).certificate == ca.certificate

    def test_it_is_checked_against_the_member_and_the_cas(self, home: Home, tmp_path: Path) -> None:
        ca, other = load_or_create_ca(home, "n", NAME), load_or_create_ca(Home.at(tmp_path / "other"), "n", NAME)
        issued = ca.issue(client_public_key(home), PEER, now_ms())
        check_client(issued, PEER, [other.certificate, ca.certificate])
        with pytest.raises(Unauthenticated, match="not in the roster"):
            check_client(issued, PEER, [other.certificate])
        with pytest.raises(Unauthenticated, match="not that of"):
            check_client(issued, Peer("n", "node", NAME), [ca.certificate])
        with pytest.raises(Unauthenticated, match="cannot be read"):
            check_client(b"garbage", PEER, [ca.certificate])
        with pytest.raises(Unauthenticated, match="cannot be read"):
            check_client(ca.certificate, PEER, [ca.certificate])

    def test_a_renewed_one_is_seen_without_a_restart(self, home: Home) -> None:
        ca = load_or_create_ca(home, "k51net", NAME)
        store_client(home, "node", ca.issue(client_public_key(home), PEER, now_ms(), 1))
        client = load_client(home, "node")
        first, ends = client.current(), client.not_after_ms
        assert client.current() is first, "it is read from the disk each time"
        store_client(home, "node", ca.issue(client_public_key(home), PEER, now_ms(), 24))
        assert client.current()[0] == first[0] and client.current()[1] != first[1]
        assert client.not_after_ms > ends > client.not_before_ms

    def test_a_role_that_the_home_does_not_have_is_told(self, home: Home) -> None:
        with pytest.raises(ConfigurationError, match=r"no client certificate client-user\.crt") as caught:
            load_client(home, "user")
        assert "dim network join" in caught.value.hint

    def test_one_for_another_key_is_not_kept(self, home: Home, tmp_path: Path) -> None:
        ca = load_or_create_ca(home, "k51net", NAME)
        issued = ca.issue(client_public_key(Home.at(tmp_path / "other")), PEER, now_ms())
        with pytest.raises(InputError, match="another key"):
            store_client(home, "node", issued)
        with pytest.raises(InputError, match="not a certificate"):
            store_client(home, "node", b"garbage")
        assert not (home.network / "client-node.crt").exists()

    def test_what_lies_on_the_disk_is_checked(self, home: Home) -> None:
        ca = load_or_create_ca(home, "k51net", NAME)
        store_client(home, "node", ca.issue(client_public_key(home), PEER, now_ms()))
        (home.keys / "client.key").unlink()
        client_public_key(home)
        with pytest.raises(ConfigurationError, match="is not for the key"):
            load_client(home, "node")
        (home.network / "client-node.crt").write_bytes(b"garbage")
        with pytest.raises(ConfigurationError, match="cannot read"):
            load_client(home, "node")


def test_an_ended_ca_is_made_anew(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificates, "CA_DAYS", 20)
    old = load_or_create_ca(home, "n", NAME)
    monkeypatch.undo()
    fresh = load_or_create_ca(home, "n", NAME)
    assert fresh.certificate != old.certificate
    ends = x509.load_der_x509_certificate(fresh.certificate).not_valid_after_utc
    assert ends - datetime.now(UTC) > timedelta(days=3000)


def test_a_key_of_another_kind_is_refused(home: Home) -> None:
    load_or_create_key(home.keys / "client.key")
    with pytest.raises(ConfigurationError, match="not a P-256 key"):
        client_public_key(home)
