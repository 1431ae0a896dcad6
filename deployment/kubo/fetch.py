#!/usr/bin/env python3
"""Brings the `ipfs` program (Kubo 0.43) to `.tools/bin/ipfs`; needs nothing but the standard library.

The first of these that works is taken:

1. an `ipfs` of the right version that is already at `.tools/bin` or on PATH (linked, not copied);
2. the official archive, when its SHA-512 is the one pinned here;
3. a build with Go from the pinned wrapper module beside this file.

What 2 and 3 bring lies in `.tools/kubo/HASH`, where HASH names the pinned recipe (this file, go.mod and
go.sum): it is made once, and again only when the recipe has changed.
"""

from __future__ import annotations

import hashlib
import io
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

VERSION = "0.43.0"
SERIES = (0, 43)
BASE_URL = "https://dist.ipfs.tech/kubo"
# Two independent public installers that read the official .sha512 files carry these values (docs/decisions/0007).
ARCHIVE_SHA512 = {
    ("Linux", "x86_64"): (
        "linux-amd64",
        "6af21cd24a307d94326807b3d3827064c74fb7122f83b6940af250e6ae40da25"
        "0e0ec0e1f3551256b78cd204623ed56c32ce735bbe28bdcc787b36943c52458a",
    ),
    ("Linux", "aarch64"): (
        "linux-arm64",
        "aae6c766ec2436f27bbd2d6ab5f8de7d2ced4dc83abc5b54b17bd58a80c28f1e"
        "a2e38840305e22f08bd01c55cf8263745675da1bbda2ac0bcde268e9e61e3818",
    ),
}
CONNECT_TIMEOUT_S = 4.0
"""How long one step of the download may stand still: a place that cannot be reached must not hold up the build."""
DOWNLOAD_TIMEOUT_S = 180.0
GO_PACKAGE = "github.com/ipfs/kubo/cmd/ipfs"


class Unavailable(Exception):
    """This way of getting the program does not work here; the text says why."""


def version_of(program: Path) -> tuple[int, ...] | None:
    """Give the version that `program` reports, or None when it is no working `ipfs`."""
    try:
        done = subprocess.run([program, "version", "--number"], capture_output=True, text=True, timeout=10, check=True)
        return tuple(int(part) for part in done.stdout.strip().split("-")[0].split("."))
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def is_good(program: Path) -> bool:
    """Tell whether `program` is a Kubo of the series that DIM is tested with."""
    version = version_of(program)
    return version is not None and version[:2] == SERIES


def recipe_hash(folder: Path) -> str:
    """Name the pinned recipe: equal hash, equal program."""
    digest = hashlib.sha256(platform.machine().encode())
    for name in ("fetch.py", "go.mod", "go.sum", "tools.go"):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()[:16]


def on_path(tools: Path) -> Iterator[Path]:
    """Give each `ipfs` of PATH that is not our own."""
    for entry in os.environ.get("PATH", "").split(os.pathsep):
        program = Path(entry) / "ipfs"
        if entry and program.is_file() and tools.resolve() not in program.resolve().parents:
            yield program


def download(base_url: str = BASE_URL, pins: dict[tuple[str, str], tuple[str, str]] = ARCHIVE_SHA512) -> bytes:
    """Give the program out of the official archive.

    Raises:
        Unavailable: no archive is pinned for this machine, it cannot be fetched, or its SHA-512 is another one.
    """
    try:
        target, expected = pins[(platform.system(), platform.machine())]
    except KeyError:
        raise Unavailable(f"no archive is pinned for {platform.system()} {platform.machine()}") from None
    url = f"{base_url}/v{VERSION}/kubo_v{VERSION}_{target}.tar.gz"
    archive = io.BytesIO()
    deadline = time.monotonic() + DOWNLOAD_TIMEOUT_S
    try:
        with urllib.request.urlopen(url, timeout=CONNECT_TIMEOUT_S) as response:
            while chunk := response.read(1 << 20):
                archive.write(chunk)
                if time.monotonic() > deadline:
                    raise Unavailable(f"{url} took longer than {DOWNLOAD_TIMEOUT_S:.0f} s")
    except OSError as error:
        raise Unavailable(f"{url} cannot be fetched: {error}") from error
    found = hashlib.sha512(archive.getvalue()).hexdigest()
    if found != expected:
        raise Unavailable(f"{url} has SHA-512 {found[:16]}…, pinned is {expected[:16]}…")
    archive.seek(0)
    with tarfile.open(fileobj=archive) as files:
        member = files.extractfile("kubo/ipfs")
        if member is None:
            raise Unavailable(f"{url} holds no kubo/ipfs")
        return member.read()


def build(folder: Path) -> bytes:
    """Build the program with Go from the wrapper module in `folder`.

    Raises:
        Unavailable: there is no Go, or the build failed.
    """
    if shutil.which("go") is None:
        raise Unavailable("there is no Go on PATH (https://go.dev/dl, 1.26.5 or newer)")
    with tempfile.TemporaryDirectory() as scratch:
        program = Path(scratch) / "ipfs"
        environment = {**os.environ, "GOFLAGS": "-mod=readonly -buildvcs=false", "CGO_ENABLED": "0"}
        command = ["go", "build", "-trimpath", "-ldflags=-s -w", "-o", str(program), GO_PACKAGE]
        done = subprocess.run(command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, check=False)
        if done.returncode != 0:
            raise Unavailable(f"go build ended with {done.returncode}")
        return program.read_bytes()


def install(data: bytes, program: Path) -> None:
    """Write the program whole and check that it runs.

    Raises:
        Unavailable: what was written is not the right `ipfs`.
    """
    program.parent.mkdir(parents=True, exist_ok=True)
    fresh = program.with_name(f".ipfs-{os.getpid()}")
    fresh.write_bytes(data)
    fresh.chmod(0o755)
    if not is_good(fresh):
        fresh.unlink()
        raise Unavailable("the program that was brought does not run as Kubo 0.43")
    fresh.replace(program)


def link(target: Path, place: Path) -> None:
    """Point `place` at `target` in one step."""
    place.parent.mkdir(parents=True, exist_ok=True)
    fresh = place.with_name(f".{place.name}-{os.getpid()}")
    fresh.symlink_to(os.path.relpath(target, place.parent) if place.parents[1] in target.parents else target)
    fresh.replace(place)


def fetch(folder: Path, tools: Path) -> str:
    """Bring the program to `tools/bin/ipfs` and say in one line where it came from.

    Raises:
        Unavailable: no way worked; the text names each.
    """
    place = tools / "bin" / "ipfs"
    made = tools / "kubo" / recipe_hash(folder) / "ipfs"
    is_ours = place.is_symlink() and tools.resolve() / "kubo" in place.resolve().parents
    if place.exists() and not is_ours and is_good(place):
        return f"{place}: already there"
    if is_good(made):
        link(made, place)
        return f"{place}: already made"
    for program in on_path(tools):
        if is_good(program):
            link(program, place)
            return f"{place}: links to {program}"
    reasons = []
    for name, bring in (("the official archive", download), ("a build with Go", lambda: build(folder))):
        print(f"tools: ipfs from {name}", flush=True)
        start = time.monotonic()
        try:
            install(bring(), made)
        except Unavailable as error:
            reasons.append(f"{name}: {error}")
            print(f"tools: {error}", flush=True)
            continue
        link(made, place)
        return f"{place}: {name}, {time.monotonic() - start:.0f} s"
    raise Unavailable("; ".join(reasons))


def main() -> int:
    """Bring the program to the project's `.tools`."""
    folder = Path(__file__).resolve().parent
    try:
        print(f"tools: {fetch(folder, folder.parents[1] / '.tools')}")
    except Unavailable as error:
        print(f"tools: no ipfs: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
