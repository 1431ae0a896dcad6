"""Ed25519 keys in files that only their owner can read (RFC 8032; PKCS #8 in PEM, RFC 8410)."""

from __future__ import annotations

import base64
import contextlib
import os
import tempfile
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dim_pipelines.errors import ConfigurationError

PUBLIC_KEY_PREFIX = "ed25519:"


def load_or_create_key(path: Path) -> Ed25519PrivateKey:
    """Read the key at `path`, or make one there (mode 0600) when there is none.

    Several that make it at once end with the same key.

    Raises:
        ConfigurationError: the file is no Ed25519 key, or the folder cannot be written.
    """
    try:
        return _load(path)
    except FileNotFoundError:
        pass
    pem = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, fresh = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(pem)
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(fresh, path)
        finally:
            Path(fresh).unlink()
    except OSError as error:
        raise ConfigurationError(f"cannot write the key {path}: {error.strerror}") from error
    return _load(path)


def _load(path: Path) -> Ed25519PrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise ConfigurationError(f"cannot read the key {path}: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigurationError(f"{path} is not an Ed25519 key")
    return key


def public_bytes(key: Ed25519PrivateKey) -> bytes:
    """Give the 32 bytes of the public half."""
    return key.public_key().public_bytes_raw()


def format_public_key(public: bytes) -> str:
    """Write a public key as people see it: `ed25519:` and base64 without padding."""
    return PUBLIC_KEY_PREFIX + base64.urlsafe_b64encode(public).decode("ascii").rstrip("=")


def parse_public_key(text: str) -> bytes:
    """Read what `format_public_key` wrote.

    Raises:
        ConfigurationError: the text is no public key.
    """
    body = text.strip().removeprefix(PUBLIC_KEY_PREFIX)
    try:
        raw = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
    except ValueError as error:
        raise ConfigurationError(f"not a public key: {text!r}") from error
    if len(raw) != 32 or not text.strip().startswith(PUBLIC_KEY_PREFIX):
        raise ConfigurationError(
            f"not a public key: {text!r}", hint="it looks like ed25519:… and has 43 characters after the colon"
        )
    return raw
