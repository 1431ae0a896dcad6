"""How DIM's pins stand in a Kubo, which has one pin per block, with one name of at most 255 bytes.

So every pin of DIM is a small dag-cbor block of its own, recursively pinned:

- a *wrapper* {owner, label, root} holds everything below a root;
- a *group* {owner, label, blocks, codecs} holds blocks without following their links: it names them by
  raw CIDs of the same digests, which is how Kubo's collection looks at blocks, and keeps the codecs beside;
- a *fresh* group, of nobody, holds what was put without a pin until it is older than the grace of a collection.

The pin's name says which it is and when it ends: `dim:r:ROOT:EXPIRES:OWNER:LABEL`,
`dim:g::EXPIRES:OWNER:LABEL`, `dim:f::ADDED::`; times are Unix milliseconds, empty for never.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, unquote

from dim_pipelines.content.store import Block, Pin
from dim_pipelines.domain.cid import DAG_CBOR, RAW, Cid
from dim_pipelines.domain.format import decode_cbor, encode_cbor
from dim_pipelines.errors import InputError

ALL: Final = "dim:"
"""What the names of all of DIM's pins begin with."""
WRAPPER, GROUP, FRESH = "r", "g", "f"
_MAX_NAME_BYTES: Final = 255


@dataclass(frozen=True, slots=True)
class PinName:
    """The name of one of DIM's pins in a Kubo.

    Attributes:
        form: WRAPPER, GROUP or FRESH.
        pin: whose; of a fresh group, `expires_ms` is when it was added.
        root: what a wrapper holds.
    """

    form: str
    pin: Pin
    root: Cid | None = None

    def text(self) -> str:
        """Write the name.

        Raises:
            InputError: owner and label are too long for it.
        """
        time = "" if self.pin.expires_ms is None else str(self.pin.expires_ms)
        text = f"{ALL}{self.form}:{self.root or ''}:{time}:{holder(self.pin)}"
        if len(text) > _MAX_NAME_BYTES:
            raise InputError(f"the pin's owner and label are too long for a Kubo: {self.pin.owner} {self.pin.label}")
        return text

    @classmethod
    def parse(cls, text: str) -> PinName | None:
        """Read a name; None when it is not one of DIM's."""
        parts = text.split(":")
        if len(parts) != 6 or f"{parts[0]}:" != ALL or parts[1] not in (WRAPPER, GROUP, FRESH):
            return None
        try:
            root = Cid.parse(parts[2]) if parts[2] else None
            expires_ms = int(parts[3]) if parts[3] else None
        except (InputError, ValueError):
            return None
        if (root is None) == (parts[1] == WRAPPER):
            return None
        return cls(parts[1], Pin(unquote(parts[4]), unquote(parts[5]), expires_ms), root)


def holder(pin: Pin) -> str:
    """Give the part of a name that says whose the pin is and what for."""
    return f"{_quoted(pin.owner)}:{_quoted(pin.label)}"


def label_filter(label_prefix: str) -> str:
    """Give what the names of all pins with such a label contain (Kubo matches anywhere in the name)."""
    return f":{_quoted(label_prefix)}" if label_prefix else ALL


def wrapper_block(root: Cid, pin: Pin) -> Block:
    """Make the block whose recursive pin holds everything below `root` for this owner and label."""
    return _block({"v": 1, "kind": "dim/pin", "owner": pin.owner, "label": pin.label, "root": root})


def group_block(cids: Sequence[Cid], pin: Pin) -> Block:
    """Make the block whose recursive pin holds these blocks, their links aside, for this owner and label."""
    return _block(
        {
            "v": 1,
            "kind": "dim/held",
            "owner": pin.owner,
            "label": pin.label,
            "blocks": [Cid(bytes((1, RAW)) + cid[2:]) for cid in cids],
            "codecs": bytes(cid.codec for cid in cids),
        }
    )


def group_cids(data: bytes) -> list[Cid]:
    """Read what a group holds.

    Raises:
        InputError: it is no group.
    """
    value = decode_cbor(data)
    if not isinstance(value, dict) or value.get("kind") != "dim/held":
        raise InputError("not a group of held blocks")
    blocks, codecs = value.get("blocks"), value.get("codecs")
    if not isinstance(blocks, list) or not isinstance(codecs, bytes) or len(blocks) != len(codecs):
        raise InputError("a malformed group of held blocks")
    return [Cid(bytes((1, codec)) + bytes(raw)[2:]) for raw, codec in zip(blocks, codecs, strict=True)]


def _block(value: dict[str, object]) -> Block:
    data = encode_cbor(value)
    return Block(Cid.of(DAG_CBOR, data), data)


def _quoted(text: str) -> str:
    return quote(text, safe="/-_. ,@+=")
