"""What a refused signature says."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dim_pipelines.domain.cid import RAW, Cid
from dim_pipelines.errors import Forbidden
from dim_pipelines.identity.signatures import MODEL_DOMAIN, sign, verify


def test_a_strangers_words_do_not_break_the_line() -> None:
    key = Ed25519PrivateKey.generate()
    subject = Cid.of(RAW, b"x")
    with pytest.raises(Forbidden) as caught:
        verify(sign(key, "two\nlines", subject), MODEL_DOMAIN, subject)
    assert "\n" not in caught.value.message
