"""Fuzzes every target of `targets.py`, guided by coverage (atheris): `make fuzz`.

Usage: python tests/fuzz/run.py [--seconds N] [--only TARGET]

The seconds are shared out among the targets, two of which run at a time. What a target finds lies in
`.fuzz/TARGET`; a crash is kept there, printed, and makes the exit code 1.
"""

from __future__ import annotations

import argparse
import runpy
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
FOUND = HERE.parents[1] / ".fuzz"
AT_ONCE = 2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--only")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options, rest = parser.parse_known_args()
    if options.child:
        return _child(options.child, rest)
    names = [options.only] if options.only else sorted(runpy.run_path(str(HERE / "targets.py"))["TARGETS"])
    each_s = max(1, options.seconds * AT_ONCE // len(names))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        failed = [
            name for name, code in zip(names, pool.map(lambda name: _fuzz(name, each_s), names), strict=True) if code
        ]
    print(f"crashed: {', '.join(failed)}" if failed else f"{len(names)} targets, {each_s} s each: clean")
    return 1 if failed else 0


def _fuzz(name: str, seconds: int) -> int:
    folder = FOUND / name
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(runpy.run_path(str(HERE / "targets.py"))["TARGETS"][name].seeds):
        (folder / f"seed-{number}").write_bytes(seed)
    command = [sys.executable, __file__, "--child", name, str(folder), f"-artifact_prefix={folder}/crash-"]
    command += [f"-max_total_time={seconds}", "-timeout=20", "-rss_limit_mb=2048", "-max_len=12000", "-verbosity=0"]
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False, errors="replace")
    print(f"{name:<20}{time.monotonic() - began:6.0f} s  {'ok' if done.returncode == 0 else 'CRASH'}", flush=True)
    if done.returncode:
        print(done.stdout[-2_000:] + done.stderr[-6_000:], flush=True)
    return done.returncode


def _child(name: str, arguments: list[str]) -> int:
    import atheris

    with atheris.instrument_imports(include=["dim_pipelines"]):
        target = runpy.run_path(str(HERE / "targets.py"))["TARGETS"][name]
    atheris.Setup([sys.argv[0], *arguments], target)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
