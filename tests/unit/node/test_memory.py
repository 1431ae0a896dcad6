"""The allocator of an engine process keeps what a call frees, and gives it back when it is told to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from dim_pipelines.node.engine_host import EngineConfig

PROGRAM = """
import json, resource
from dim_pipelines.node.engines.memory import ProcessMemory, give_back

memory = ProcessMemory()

def call():
    temporaries = [bytearray(8 << 20) for _ in range(16)]
    del temporaries

call()
kept = memory.resident_bytes()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
call()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
give_back()
print(json.dumps({"faults": faults, "given_back": kept - memory.resident_bytes(), "peak": memory.peak_bytes()}))
"""


def test_freed_memory_is_used_again_and_then_given_back(tmp_path: Path) -> None:
    config = EngineConfig(device="cpu", engines=("echo",), threads=1, models=tmp_path, scratch=tmp_path)
    environment = {**config.environment(), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["faults"] < 1000, "a second call of 128 MiB would fault in 32,768 pages anew"
    assert seen["given_back"] > 100 << 20
    assert seen["peak"] > 128 << 20
