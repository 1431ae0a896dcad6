"""The machines of these tests are what they claim: far apart, lossy, cut off when told."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from namespaces import MakeSpaces, Space, Spaces

ANSWER = """
import socket, sys
server = socket.create_server((sys.argv[1], 0))
print(server.getsockname()[1], flush=True)
while True:
    peer, _ = server.accept()
    with peer:
        while data := peer.recv(1 << 16):
            peer.sendall(data)
"""
ASK = """
import json, socket, sys, time
host, port, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
begin = time.monotonic()
try:
    with socket.create_connection((host, port), timeout=float(sys.argv[4])) as peer:
        connected = time.monotonic() - begin
        sent, got = b"x" * size, 0
        peer.sendall(sent)
        while got < size:
            got += len(peer.recv(1 << 16)) or sys.exit("closed")
    print(json.dumps({"connected_s": connected, "whole_s": time.monotonic() - begin}))
except OSError as error:
    print(json.dumps({"error": type(error).__name__}))
"""


@contextmanager
def answering(space: Space) -> Iterator[int]:
    """Run a server that sends everything back, and give its port."""
    process = space.start(sys.executable, "-c", ANSWER, space.address, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def ask(space: Space, to: Space, port: int, size: int = 100, timeout_s: float = 30) -> dict[str, Any]:
    done = space.run(sys.executable, "-c", ASK, to.address, port, size, timeout_s)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.fixture
def far(make_spaces: MakeSpaces) -> Iterator[Spaces]:
    """Ten machines, 40 ms of round trip and 1 % of loss apart."""
    with make_spaces(10, delay_ms=20, loss=0.01, seed=7) as spaces:
        yield spaces


def test_ten_machines_are_forty_milliseconds_and_one_in_a_hundred_packets_apart(far: Spaces) -> None:
    with answering(far[0]) as port:
        for other in far[1::2]:
            answer = ask(other, far[0], port)
            assert answer["connected_s"] >= 0.040, "a round trip takes twice the delay"
        begin = time.monotonic()
        ask(far[9], far[0], port, size=1_000_000)
        seconds = time.monotonic() - begin
    counters = far.line()
    assert 0.002 < counters["lost"] / (counters["lost"] + counters["packets"]) < 0.03
    print(f"1 MB there and back in {seconds:.1f} s; {counters}")


def test_a_machine_has_no_way_out_but_the_line(far: Spaces) -> None:
    with socket.create_server(("127.0.0.1", 0)) as outside:
        port = outside.getsockname()[1]
        here = far[0].run(sys.executable, "-c", ASK, "127.0.0.1", port, 1, 2).stdout
        assert json.loads(here)["error"] == "ConnectionRefusedError", "its loopback is its own"
        away = far[0].run(sys.executable, "-c", ASK, "192.0.2.1", 9, 1, 2).stdout
        assert json.loads(away)["error"] == "OSError", "no route leads out"


def test_a_cut_machine_hears_nothing_and_is_heard_by_nobody_until_it_is_mended(make_spaces: MakeSpaces) -> None:
    with make_spaces(2) as (one, two), answering(one) as port:
        assert "error" not in ask(two, one, port)
        one.cut()
        assert ask(two, one, port, timeout_s=1) == {"error": "TimeoutError"}
        one.mend()
        assert "error" not in ask(two, one, port)


def test_a_machine_that_refuses_inbound_connections_can_still_dial_out(make_spaces: MakeSpaces) -> None:
    with make_spaces(2) as (inside, outside), answering(inside) as closed, answering(outside) as open_:
        inside.refuse_inbound()
        assert ask(outside, inside, closed, timeout_s=1) == {"error": "TimeoutError"}
        assert "error" not in ask(inside, outside, open_)


def test_the_line_can_be_made_worse_and_better_while_it_runs(make_spaces: MakeSpaces) -> None:
    with make_spaces(2) as spaces, answering(spaces[0]) as port:
        assert spaces.line(delay_ms=100)["lost"] == 0
        assert ask(spaces[1], spaces[0], port)["connected_s"] >= 0.2
        spaces.line(loss=1.0)
        assert ask(spaces[1], spaces[0], port, timeout_s=1) == {"error": "TimeoutError"}
        spaces.line(delay_ms=0, loss=0.0)
        assert "error" not in ask(spaces[1], spaces[0], port)
