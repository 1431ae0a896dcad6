"""A delay line between network namespaces: `python delay_line.py SEED ADDRESS=FD …`, told what to do on standard input.

Each FD is a TUN device of a namespace whose IPv4 address stands before it. A packet read from one device waits for
the delay and goes into the device of its destination; some are lost on the way, by a seeded random generator. This
takes the place of `tc netem`, which not every kernel has. A process of its own: each packet costs Python 20 µs.

Input, a JSON object a line: {"delay_ms": 20, "loss": 0.01} sets what is named; each line is answered with the counters
{"packets": …, "lost": …, "bytes": …}. The end of the input ends it.
"""

from __future__ import annotations

import json
import os
import random
import selectors
import socket
import sys
import time
from collections import deque

QUEUED = 50_000
"""The most packets under way; more are dropped at the end, as in any router."""
AT_ONCE = 64
"""How many packets of one device are read before the others have their turn."""
PACKET = 65_536


class DelayLine:
    """The devices, and the packets under way."""

    def __init__(self, devices: dict[bytes, int], seed: int) -> None:
        self.devices = devices
        self.random = random.Random(seed)
        self.delay_s = 0.0
        self.loss = 0.0
        self.under_way: deque[tuple[float, int, bytes]] = deque()
        self.counters = {"packets": 0, "lost": 0, "bytes": 0}

    def take(self, device: int, now: float) -> None:
        """Read what a device has, and let each packet set out or be lost."""
        for _ in range(AT_ONCE):
            try:
                packet = os.read(device, PACKET)
            except (BlockingIOError, OSError):  # nothing more, or the namespace has gone
                return
            target = self.devices.get(packet[16:20]) if packet[0] >> 4 == 4 else None
            if target is None:
                continue
            if self.random.random() < self.loss or len(self.under_way) >= QUEUED:
                self.counters["lost"] += 1
                continue
            self.under_way.append((now + self.delay_s, target, packet))

    def give(self, now: float) -> None:
        """Deliver the packets whose time has come; a shorter delay never overtakes, so the order is kept."""
        while self.under_way and self.under_way[0][0] <= now:
            _, target, packet = self.under_way.popleft()
            try:
                os.write(target, packet)
            except OSError:  # its namespace has gone, or its device is down
                self.counters["lost"] += 1
                continue
            self.counters["packets"] += 1
            self.counters["bytes"] += len(packet)

    def wait_s(self, now: float) -> float | None:
        """Say how long nothing is due."""
        return max(0.0, self.under_way[0][0] - now) if self.under_way else None


def main(seed: int, devices: dict[bytes, int]) -> None:
    line = DelayLine(devices, seed)
    selector = selectors.DefaultSelector()
    for device in devices.values():
        os.set_blocking(device, False)
        selector.register(device, selectors.EVENT_READ)
    selector.register(sys.stdin, selectors.EVENT_READ, "orders")
    while True:
        for key, _ in selector.select(line.wait_s(time.monotonic())):
            if key.data == "orders":
                order = sys.stdin.readline()
                if not order:
                    return
                wanted = json.loads(order)
                line.delay_s = wanted.get("delay_ms", line.delay_s * 1000) / 1000
                line.loss = wanted.get("loss", line.loss)
                print(json.dumps(line.counters), flush=True)
            else:
                line.take(key.fd, time.monotonic())
        line.give(time.monotonic())


if __name__ == "__main__":
    pairs = (argument.split("=") for argument in sys.argv[2:])
    main(int(sys.argv[1]), {socket.inet_aton(address): int(device) for address, device in pairs})
