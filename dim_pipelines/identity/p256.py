"""P-256 keys and X.509 certificates: made, read from files, compared; what they are for is said in `certificates`."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from dim_pipelines.errors import ConfigurationError, InputError
from dim_pipelines.identity.files import create_once

SKEW: Final = timedelta(minutes=10)
"""Certificates begin this long before now, for the clocks of others."""
PEM: Final = serialization.Encoding.PEM
DER: Final = serialization.Encoding.DER


def build_certificate(
    signer: ec.EllipticCurvePrivateKey,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey,
    subject: x509.Name,
    alternative: x509.GeneralName | None,
    *,
    days: float,
    now: datetime | None = None,
) -> x509.Certificate:
    """Make a certificate: a CA's without `alternative`, a server's with a DNS name, a client's with a URI."""
    public = key.public_key() if isinstance(key, ec.EllipticCurvePrivateKey) else key
    begin = (now or datetime.now(UTC)) - SKEW
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + SKEW + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=alternative is None, path_length=None if alternative else 0), True)
    )
    if alternative is None:
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        builder = builder.add_extension(usage, True)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), False)
        return builder.sign(signer, hashes.SHA256())
    # An empty subject makes the alternative name critical (RFC 5280, 4.2.1.6).
    builder = builder.add_extension(x509.SubjectAlternativeName([alternative]), True)
    if isinstance(alternative, x509.UniformResourceIdentifier):
        usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
        builder = builder.add_extension(usage, True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), False)
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
        builder = builder.add_extension(authority, False)
    return builder.sign(signer, hashes.SHA256())


def load_or_create_p256(path: Path) -> tuple[ec.EllipticCurvePrivateKey, bytes]:
    """Read a key, or make one (mode 0600) where there is none; gives it and its PEM.

    Raises:
        ConfigurationError: the file cannot be read or written, or is no P-256 key.
    """
    try:
        pem = path.read_bytes()
    except FileNotFoundError:
        made = ec.generate_private_key(ec.SECP256R1())
        pem = create_once(
            path, made.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )
    except OSError as error:
        raise ConfigurationError(f"cannot read the key {path}: {error.strerror}") from error
    return read_key(path, pem), pem


def read_key(path: Path, pem: bytes) -> ec.EllipticCurvePrivateKey:
    """Read the PEM of a key; `path` is for the message.

    Raises:
        ConfigurationError: it is no P-256 key.
    """
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigurationError(f"cannot read the key {path}: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ConfigurationError(f"{path} is not a P-256 key")
    return key


def load_certificate(path: Path) -> x509.Certificate | None:
    """Read a certificate from a file; None where there is none.

    Raises:
        ConfigurationError: the file holds something else.
    """
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"cannot read the certificate {path}: {error}", hint="remove the file: it is made anew"
        ) from error


def parse_certificate(der: bytes) -> x509.Certificate:
    """Read a certificate.

    Raises:
        InputError: it is none.
    """
    try:
        return x509.load_der_x509_certificate(der)
    except ValueError as error:
        raise InputError("not a certificate") from error


def fits(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> bool:
    """Tell whether a certificate is for a key."""
    return certificate.public_key() == key.public_key()


def issued_by(certificate: x509.Certificate, ca: x509.Certificate) -> bool:
    """Tell whether a CA signed a certificate."""
    try:
        certificate.verify_directly_issued_by(ca)
    except Exception:  # one class for the name, another for the key's kind, a third for the signature: all mean no
        return False
    return True


def dns_names(certificate: x509.Certificate) -> list[str]:
    """Give the DNS names of a certificate."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound):
        return []
    return names.get_values_for_type(x509.DNSName)


def ends_within(certificate: x509.Certificate, days: int) -> bool:
    """Tell whether a certificate has fewer days left."""
    return certificate.not_valid_after_utc.timestamp() - time.time() < days * 86_400


def unix_ms(moment: datetime) -> int:
    """Give Unix milliseconds."""
    return int(moment.timestamp() * 1000)
