"""The targets of the fuzzer, over good bytes, over bytes near them, and over what once broke one."""

from __future__ import annotations

import runpy
from pathlib import Path
from random import Random
from typing import Any

import pytest

HERE = Path(__file__).parent
TARGETS: dict[str, Any] = runpy.run_path(str(HERE / "targets.py"))["TARGETS"]
ROUNDS = 150


def changed(seed: bytes, random: Random) -> bytes:
    """Give the seed with a few bytes changed, cut, repeated or put in."""
    data = bytearray(seed)
    for _ in range(random.randint(1, 4)):
        place = random.randrange(len(data) + 1)
        match random.randrange(6):
            case 0:
                data[place : place + 1] = bytes([random.randrange(256)])
            case 1:
                del data[place : place + random.randint(1, 16)]
            case 2:
                data[place:place] = random.randbytes(random.randint(1, 8))
            case 3:
                data[place:place] = data[place : place + random.randint(1, 40)]
            case 4:
                data[place : place + 1] = random.choice([b"\x00", b"\xff", b"\x80", b"\x7f", b"\xd8\x2a", b"\xf6"])
            case _:
                if place < len(data):
                    data[place] ^= 1 << random.randrange(8)
    return bytes(data)


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_good_bytes_are_taken(name: str) -> None:
    for seed in TARGETS[name].seeds:
        TARGETS[name](seed)


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_bytes_near_the_good_ones_are_taken_or_refused(name: str) -> None:
    random = Random(name)
    for seed in TARGETS[name].seeds:
        for _ in range(ROUNDS):
            TARGETS[name](changed(seed, random))
    TARGETS[name](b"")
    TARGETS[name](random.randbytes(2_000))


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_what_once_broke_a_target_does_no_more(name: str) -> None:
    for path in sorted((HERE / "found" / name).glob("*")):
        TARGETS[name](path.read_bytes())
