"""Keys, detached signatures, grants and trust: what is signed for one end is worthless for another."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from dim_pipelines.domain.cid import DAG_PB, RAW, Cid
from dim_pipelines.domain.grant import Grant, Signature, SignedGrant
from dim_pipelines.errors import ConfigurationError, Forbidden
from dim_pipelines.identity.authority import issue_grant, verify_grant
from dim_pipelines.identity.keys import format_public_key, load_or_create_key, parse_public_key, public_bytes
from dim_pipelines.identity.signatures import GRANT_DOMAIN, MODEL_DOMAIN, sign, verify
from dim_pipelines.identity.trust import Trust, load_trust, save_trust

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
SUBJECT = Cid.of(DAG_PB, b"model")
GRANT = Grant(network="local", batch="b", epoch=1, owner="local", holder=bytes(32), not_after_ms=1000)


class TestKeys:
    def test_a_key_is_made_once_and_only_its_owner_reads_it(self, tmp_path: Path) -> None:
        path = tmp_path / "keys" / "user.key"
        made = load_or_create_key(path)
        assert public_bytes(load_or_create_key(path)) == public_bytes(made)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert [entry.name for entry in path.parent.iterdir()] == ["user.key"]

    def test_several_at_once_end_with_the_same_key(self, tmp_path: Path) -> None:
        with ThreadPoolExecutor(8) as pool:
            keys = list(pool.map(lambda _: load_or_create_key(tmp_path / "key"), range(8)))
        assert len({public_bytes(key) for key in keys}) == 1

    def test_two_in_one_process_do_not_write_one_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        inner: list[Ed25519PrivateKey] = []
        link = os.link

        def overtaken(source: Path, target: Path) -> None:
            monkeypatch.undo()
            inner.append(load_or_create_key(target))
            link(source, target)

        monkeypatch.setattr(os, "link", overtaken)
        assert public_bytes(load_or_create_key(tmp_path / "key")) == public_bytes(inner[0])
        assert [entry.name for entry in tmp_path.iterdir()] == ["key"]

    def test_a_failed_write_leaves_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(ConfigurationError, match=r"cannot write the key .*: No space left"):
            load_or_create_key(tmp_path / "key")
        assert list(tmp_path.iterdir()) == []

    def test_another_kind_of_key_is_refused(self, tmp_path: Path) -> None:
        other = ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (tmp_path / "key").write_bytes(other)
        with pytest.raises(ConfigurationError, match="is not an Ed25519 key"):
            load_or_create_key(tmp_path / "key")

    def test_something_else_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "key").write_text("word")
        with pytest.raises(ConfigurationError, match="cannot read the key"):
            load_or_create_key(tmp_path / "key")

    def test_a_folder_that_cannot_be_made_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(ConfigurationError, match=r"cannot (write|read) the key"):
            load_or_create_key(tmp_path / "file" / "key")

    @given(st.binary(min_size=32, max_size=32))
    def test_the_text_of_a_key_leads_back_to_it(self, raw: bytes) -> None:
        assert parse_public_key(format_public_key(raw)) == raw

    @pytest.mark.parametrize(
        "text", ["", "ed25519:", "ed25519:AAAA", "A" * 43, "ed25519:" + "é" * 43, "rsa:" + "A" * 43]
    )
    def test_other_text_is_no_key(self, text: str) -> None:
        with pytest.raises(ConfigurationError, match="not a public key"):
            parse_public_key(text)


class TestSignatures:
    def test_a_signature_names_its_signer(self) -> None:
        assert verify(sign(KEY, MODEL_DOMAIN, SUBJECT), MODEL_DOMAIN, SUBJECT) == public_bytes(KEY)

    def test_it_is_worthless_for_another_end_or_subject(self) -> None:
        signature = sign(KEY, MODEL_DOMAIN, SUBJECT)
        for domain, subject in ((GRANT_DOMAIN, SUBJECT), (MODEL_DOMAIN, Cid.of(RAW, b"model"))):
            with pytest.raises(Forbidden, match="the signature is for"):
                verify(signature, domain, subject)
            moved = signature.model_copy(update={"domain": domain, "subject": subject})
            with pytest.raises(Forbidden, match="is not valid"):
                verify(moved, domain, subject)

    @pytest.mark.parametrize("change", [{"key": bytes(31)}, {"signature": bytes(64)}, {"signature": b""}])
    def test_a_changed_one_is_not_valid(self, change: dict[str, bytes]) -> None:
        signature = sign(KEY, MODEL_DOMAIN, SUBJECT).model_copy(update=change)
        with pytest.raises(Forbidden, match="is not valid"):
            verify(signature, MODEL_DOMAIN, SUBJECT)


class TestGrants:
    def test_a_grant_of_a_trusted_key_is_honoured_until_it_ends(self) -> None:
        data = issue_grant(KEY, GRANT).encode()
        assert verify_grant(data, {public_bytes(KEY)}, 999) == GRANT
        with pytest.raises(Forbidden, match="has ended"):
            verify_grant(data, {public_bytes(KEY)}, 1000)

    def test_a_stranger_is_named_with_what_to_do(self) -> None:
        with pytest.raises(Forbidden) as caught:
            verify_grant(issue_grant(KEY, GRANT).encode(), set(), 0)
        assert format_public_key(public_bytes(KEY)) in caught.value.message
        assert "--trust" in caught.value.hint

    def test_a_grant_whose_terms_were_changed_is_refused(self) -> None:
        signed = issue_grant(KEY, GRANT)
        more = SignedGrant(grant=GRANT.model_copy(update={"epoch": 9}).encode(), signature=signed.signature)
        with pytest.raises(Forbidden, match="the signature is for"):
            verify_grant(more.encode(), {public_bytes(KEY)}, 0)

    def test_a_models_signature_is_no_grant(self) -> None:
        data = GRANT.encode()
        signature: Signature = sign(KEY, MODEL_DOMAIN, GRANT.cid())
        with pytest.raises(Forbidden, match="the signature is for"):
            verify_grant(SignedGrant(grant=data, signature=signature.encode()).encode(), {public_bytes(KEY)}, 0)

    @given(st.binary(max_size=100))
    def test_other_bytes_are_refused(self, data: bytes) -> None:
        with pytest.raises(Forbidden, match="cannot be read"):
            verify_grant(data, {public_bytes(KEY)}, 0)


class TestTrust:
    def test_trust_is_written_and_read_again(self, tmp_path: Path) -> None:
        trust = Trust(frozenset({bytes(32)}), frozenset({public_bytes(KEY)}))
        save_trust(tmp_path / "home" / "trusted.yaml", trust)
        assert load_trust(tmp_path / "home" / "trusted.yaml") == trust
        assert stat.S_IMODE((tmp_path / "home" / "trusted.yaml").stat().st_mode) == 0o600

    def test_two_in_one_process_do_not_write_one_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path, trust = tmp_path / "trusted.yaml", Trust().including(bytes(32))
        replace = Path.replace

        def overtaken(source: Path, target: Path) -> None:
            monkeypatch.undo()
            save_trust(path, Trust())
            replace(source, target)

        monkeypatch.setattr(Path, "replace", overtaken)
        save_trust(path, trust)
        assert load_trust(path) == trust
        assert [entry.name for entry in tmp_path.iterdir()] == ["trusted.yaml"]

    def test_a_failed_write_leaves_what_was_there(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        save_trust(tmp_path / "trusted.yaml", Trust())
        monkeypatch.setattr(Path, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            save_trust(tmp_path / "trusted.yaml", Trust().including(bytes(32)))
        assert [entry.name for entry in tmp_path.iterdir()] == ["trusted.yaml"]
        assert load_trust(tmp_path / "trusted.yaml") == Trust()

    def test_no_file_is_no_trust(self, tmp_path: Path) -> None:
        assert load_trust(tmp_path / "none") == Trust()

    def test_one_more_key_is_both_submitter_and_publisher(self) -> None:
        trust = Trust().including(bytes(32))
        assert trust.submitters == trust.publishers == {bytes(32)}

    @pytest.mark.parametrize("text", ["- a", "submiters: []", "submitters: word", "publishers: [3]", "a: [", "\0"])
    def test_anything_else_is_refused_with_the_files_name(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "trusted.yaml").write_text(text)
        with pytest.raises(ConfigurationError, match=r"trusted\.yaml"):
            load_trust(tmp_path / "trusted.yaml")

    def test_a_key_that_is_none_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "trusted.yaml").write_text("submitters: ['word']")
        with pytest.raises(ConfigurationError, match="not a public key"):
            load_trust(tmp_path / "trusted.yaml")
