"""Folders too large for one block: a HAMT of dag-pb nodes, as Kubo writes it.

Source: https://specs.ipfs.tech/unixfs/#dag-pb-hamtdirectory. An entry's place is its name's murmur3-x64-64,
one byte per level; a slot with one entry links it, a slot with more links a further node.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from dim_pipelines.content.dag_pb import Link, encode_hamt, encode_node
from dim_pipelines.content.store import Block
from dim_pipelines.domain.cid import DAG_PB, Cid
from dim_pipelines.errors import InputError

FANOUT: Final = 256
"""Slots of a node."""
LIMIT_BYTES: Final = 256 * 1024
"""A folder whose names and CIDs take more than this, in bytes, is sharded: Kubo's HAMTDirectorySizeThreshold."""
_MURMUR3_X64_64: Final = 0x22
_MASK: Final = (1 << 64) - 1


def is_large(entries: Sequence[Link]) -> bool:
    """Tell whether Kubo would shard a folder with these entries."""
    return sum(len(entry.name.encode("utf-8", "surrogateescape")) + len(entry.cid) for entry in entries) > LIMIT_BYTES


def hamt_blocks(entries: Sequence[Link]) -> Iterator[tuple[Block, Link]]:
    """Give the nodes of a sharded folder, the root last, each with the link to it."""
    hashed = [(murmur3_64(entry.name.encode("utf-8", "surrogateescape")), entry) for entry in entries]
    yield from _node(hashed, 0)


def _node(entries: Sequence[tuple[int, Link]], depth: int) -> Iterator[tuple[Block, Link]]:
    if depth == 8:
        raise InputError("two names of the folder have the same hash", hint="rename one of the files")
    slots: dict[int, list[tuple[int, Link]]] = {}
    for digest, entry in entries:
        slots.setdefault(digest >> (56 - 8 * depth) & 0xFF, []).append((digest, entry))
    links: list[Link] = []
    bitmap = 0
    for slot in sorted(slots):
        bitmap |= 1 << slot
        prefix = f"{slot:02X}"
        if len(slots[slot]) == 1:
            [(_, entry)] = slots[slot]
            links.append(Link(entry.cid, prefix + entry.name, entry.size))
            continue
        below = Link(Cid.of(DAG_PB, b""), "", 0)
        for block, below in _node(slots[slot], depth + 1):
            yield block, below
        links.append(Link(below.cid, prefix, below.size))
    bits = bitmap.to_bytes((bitmap.bit_length() + 7) // 8, "big")
    data = encode_node(links, encode_hamt(bits, FANOUT, _MURMUR3_X64_64))
    block = Block(Cid.of(DAG_PB, data), data)
    yield block, Link(block.cid, "", len(data) + sum(link.size for link in links))


def murmur3_64(data: bytes) -> int:
    """Give the first 64 bits of MurmurHash3 x64 128 with seed 0.

    Source: https://github.com/aappleby/smhasher/blob/master/src/MurmurHash3.cpp.
    """
    c1, c2 = 0x87C37B91114253D5, 0x4CF5AD432745937F
    h1 = h2 = 0
    whole = len(data) // 16 * 16
    for start in range(0, whole, 16):
        k1 = int.from_bytes(data[start : start + 8], "little")
        k2 = int.from_bytes(data[start + 8 : start + 16], "little")
        h1 = (_rotate(h1 ^ _mixed(k1, c1, 31, c2), 27) + h2) * 5 + 0x52DCE729 & _MASK
        h2 = (_rotate(h2 ^ _mixed(k2, c2, 33, c1), 31) + h1) * 5 + 0x38495AB5 & _MASK
    h1 ^= _mixed(int.from_bytes(data[whole : whole + 8], "little"), c1, 31, c2)
    h2 ^= _mixed(int.from_bytes(data[whole + 8 :], "little"), c2, 33, c1)
    h1 ^= len(data)
    h2 ^= len(data)
    h1 = h1 + h2 & _MASK
    h2 = h2 + h1 & _MASK
    return _finished(h1) + _finished(h2) & _MASK


def _mixed(word: int, first: int, turn: int, second: int) -> int:
    return _rotate(word * first & _MASK, turn) * second & _MASK


def _rotate(word: int, turn: int) -> int:
    return (word << turn | word >> (64 - turn)) & _MASK


def _finished(word: int) -> int:
    word = (word ^ word >> 33) * 0xFF51AFD7ED558CCD & _MASK
    word = (word ^ word >> 33) * 0xC4CEB9FE1A85EC53 & _MASK
    return word ^ word >> 33
