"""A name service in a folder: the processes of one home find each other's records without any IPFS.

A file per name, written whole and renamed into place under a lock, so that of two that put at once the newer stands.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from dim_pipelines.discovery.memory_names import check_put, unix_ms
from dim_pipelines.discovery.names import MAX_RECORD_BYTES
from dim_pipelines.discovery.record import verify_record
from dim_pipelines.domain.ipns import ipns_name, public_of
from dim_pipelines.errors import ContentUnavailable, InputError, NameUnresolved, RecordForged

SUFFIX: Final = ".ipns"


class EmbeddedNameService:
    """Records in the files of a folder, which is made when the first is put."""

    def __init__(self, folder: Path, clock_ms: Callable[[], int] = unix_ms) -> None:
        """Take the folder, and Unix time in milliseconds."""
        self._folder = folder
        self._clock_ms = clock_ms

    async def put(self, name: str, record: bytes) -> None:
        """See `NameService.put`."""
        await asyncio.to_thread(self._put, name, record)

    async def get(self, name: str, timeout_s: float = 5.0) -> bytes:
        """See `NameService.get`."""
        return await asyncio.to_thread(self._get, name)

    async def close(self) -> None:
        """See `NameService.close`."""

    def _path(self, name: str) -> Path:
        return self._folder / (ipns_name(public_of(name)) + SUFFIX)

    def _put(self, name: str, record: bytes) -> None:
        path = self._path(name)
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._locked():
                check_put(record, name, _read(path), self._clock_ms())
                descriptor, fresh = tempfile.mkstemp(prefix=".", dir=self._folder)
                try:
                    with os.fdopen(descriptor, "wb") as file:
                        file.write(record)
                    Path(fresh).replace(path)
                except BaseException:
                    Path(fresh).unlink(missing_ok=True)
                    raise
        except OSError as error:
            raise ContentUnavailable(f"cannot write {path}: {error.strerror or error}") from error

    def _get(self, name: str) -> bytes:
        path = self._path(name)
        try:
            raw = _read(path)
        except OSError as error:
            raise ContentUnavailable(f"cannot read {path}: {error.strerror or error}") from error
        try:
            if raw is not None and verify_record(raw, name).expires_ms > self._clock_ms():
                return raw
        except (RecordForged, InputError) as error:
            raise NameUnresolved(f"{path} holds no record: {error.message}") from error
        raise NameUnresolved(f"no record of {name} is known in this home")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self._folder / ".lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _read(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return file.read(MAX_RECORD_BYTES + 1)
    except FileNotFoundError:
        return None
