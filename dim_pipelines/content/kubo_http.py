"""A Kubo's RPC without threads: calls and endless answers that a cancelled task ends at once.

`ipfshttpclient` blocks a thread per call. That is right for moving content, and wrong for a `name/put` that hangs for
40 s behind one dead peer, and for a subscription that waits for ever: neither could be given up. This speaks the
same RPC (HTTP/1.1, POST, one connection per call) over asyncio, no more of HTTP than Kubo answers with.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final
from urllib.parse import urlencode

from dim_pipelines.content.kubo_address import find_secret, parse_address
from dim_pipelines.errors import ConfigurationError, ContentError, ContentUnavailable
from dim_pipelines.settings import Home

CONNECT_S: Final = 5.0
"""How long to wait for the address to take a connection."""
MAX_ANSWER_BYTES: Final = 1 << 20
"""The largest answer of a call."""
MAX_LINE_BYTES: Final = 64 << 10
"""The largest line of an endless answer; a larger one is passed over."""

_READ_BYTES: Final = 16 << 10
_MAX_HEADERS: Final = 64


class KuboRefused(ContentError):
    """The Kubo answered that it will not, or could not; the message is its own."""


class KuboHttp:
    """The RPC of one Kubo, for tasks."""

    def __init__(self, address: str, home: Home | None = None) -> None:
        """Take the address of the RPC, and the home in which its secret is looked for; nothing is sent yet.

        Raises:
            ConfigurationError: the address has no form that is known.
        """
        self.address = address
        self._home = home
        self._target = _target(parse_address(address))

    async def call(
        self,
        path: str,
        *arguments: str,
        options: Mapping[str, str] | None = None,
        body: bytes | None = None,
        timeout_s: float,
    ) -> bytes:
        """Call and give the whole answer.

        Args:
            path: of the RPC, such as `name/put`.
            arguments: the `arg` parameters.
            options: the other parameters.
            body: a file to upload.
            timeout_s: for all of it.

        Raises:
            KuboRefused: Kubo answered with an error.
            ContentUnavailable: nothing answers, or not in time, or the answer is cut short or endless.
            ConfigurationError: what answers is not a Kubo's RPC, or does not let us in.
        """
        try:
            async with asyncio.timeout(timeout_s):
                async with self._request(path, arguments, options, body) as parts:
                    return await self._whole(parts, path)
        except TimeoutError as error:
            raise self._silent(path) from error

    @asynccontextmanager
    async def lines(
        self, path: str, *arguments: str, options: Mapping[str, str] | None = None
    ) -> AsyncIterator[AsyncIterator[Any]]:
        """Call and give the JSON objects of an endless answer as they come; leaving the block ends the call.

        Raises: as `call`; within the block too.
        """
        async with self._request(path, arguments, options, None) as parts:
            yield _objects(parts)

    @asynccontextmanager
    async def _request(
        self, path: str, arguments: tuple[str, ...], options: Mapping[str, str] | None, body: bytes | None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        query = urlencode([*(("arg", each) for each in arguments), *(options or {}).items()])
        head = {"Host": self._target.authority, "User-Agent": "dim", "Connection": "close", "Content-Length": "0"}
        if secret := find_secret(self.address, self._home):  # read anew: a Kubo made anew has a new one
            head["Authorization"] = f"Bearer {secret}"
        payload = b""
        if body is not None:
            boundary = secrets.token_hex(16)
            payload = _multipart(body, boundary)
            head["Content-Type"] = f'multipart/form-data; boundary="{boundary}"'
            head["Content-Length"] = str(len(payload))
        lines = [f"POST /api/v0/{path}?{query} HTTP/1.1", *(f"{name}: {value}" for name, value in head.items())]
        try:
            async with asyncio.timeout(CONNECT_S):
                reader, writer = await self._target.connect()
        except (OSError, TimeoutError) as error:
            raise ContentUnavailable(
                f"no Kubo answers at {self.address}",
                hint="is it running? its RPC address stands in the file `api` of its repository",
            ) from error
        try:
            with self._translating(path):
                writer.write("\r\n".join([*lines, "", ""]).encode() + payload)
                await writer.drain()
                status, headers = await self._head(reader)
            parts = self._parts(reader, headers, path)
            if status != 200:
                raise self._refusal(status, await self._whole(parts, path), path)
            yield parts
        finally:
            writer.transport.abort()

    async def _parts(
        self, reader: asyncio.StreamReader, headers: Mapping[str, str], path: str
    ) -> AsyncGenerator[bytes, None]:
        body = _body(reader, headers)
        while True:
            with self._translating(path):
                try:
                    part = await anext(body)
                except StopAsyncIteration:
                    return
            yield part

    @contextmanager
    def _translating(self, path: str) -> Iterator[None]:
        try:
            yield
        except (ValueError, asyncio.LimitOverrunError) as error:
            raise self._not_a_kubo() from error
        except (OSError, EOFError) as error:
            raise ContentUnavailable(f"the Kubo at {self.address} broke off {path}") from error

    async def _head(self, reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
        version, status, *_ = (await reader.readuntil(b"\r\n")).decode("latin-1").split(None, 2)
        if not version.startswith("HTTP/1."):
            raise ValueError(version)
        headers: dict[str, str] = {}
        for _ in range(_MAX_HEADERS):
            line = (await reader.readuntil(b"\r\n")).decode("latin-1").strip()
            if not line:
                return int(status), headers
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        raise ValueError("too many headers")

    async def _whole(self, parts: AsyncIterator[bytes], path: str) -> bytes:
        data = bytearray()
        async for part in parts:
            data += part
            if len(data) > MAX_ANSWER_BYTES:
                raise ContentUnavailable(f"the Kubo at {self.address} answers {path} with more than 1 MiB")
        return bytes(data)

    def _refusal(self, status: int, answer: bytes, path: str) -> ContentError | ConfigurationError:
        if status == 403:
            return ConfigurationError(
                f"the Kubo at {self.address} does not let us in",
                hint="it asks for a secret: set DIM_KUBO_SECRET (API.Authorizations in its config)",
            )
        try:
            message = str(json.loads(answer)["Message"])
        except (ValueError, KeyError, TypeError):
            if status >= 500:
                return ContentUnavailable(f"the Kubo at {self.address} answers {path} with status {status}")
            return self._not_a_kubo()
        return KuboRefused(message.splitlines()[0][:500] if message else f"status {status}")

    def _silent(self, path: str) -> ContentUnavailable:
        return ContentUnavailable(
            f"the Kubo at {self.address} did not answer {path} in time", hint="is it overloaded, or stopped?"
        )

    def _not_a_kubo(self) -> ConfigurationError:
        return ConfigurationError(
            f"what answers at {self.address} is not the RPC of a Kubo",
            hint="the RPC is the address in Addresses.API (mostly port 5001), not the gateway",
        )


class _Target:
    """Where to connect: a unix socket, or a host and a port, with TLS or without."""

    def __init__(self, *, path: str = "", host: str = "", port: int = 0, tls: bool = False) -> None:
        self._path, self._host, self._port, self._tls = path, host, port, tls
        shown = f"[{host}]" if ":" in host else host
        self.authority = f"{shown}:{port}" if host else "localhost"

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._path:
            return await asyncio.open_unix_connection(self._path)
        return await asyncio.open_connection(self._host, self._port, ssl=True if self._tls else None)


def _target(multiaddr: str) -> _Target:
    kind, _, rest = multiaddr.removeprefix("/").partition("/")
    if kind == "unix":
        return _Target(path="/" + rest.removesuffix("/http"))
    parts = rest.split("/")
    known = kind in ("ip4", "ip6", "dns", "dns4", "dns6") and len(parts) in (3, 4) and parts[1] == "tcp"
    if not known or not parts[2].isdigit() or parts[3:] not in ([], ["http"], ["https"]):
        raise ConfigurationError(
            f"not the address of a Kubo: {multiaddr!r}", hint="an address is like /ip4/127.0.0.1/tcp/5001"
        )
    return _Target(host=parts[0], port=int(parts[2]), tls=parts[3:] == ["https"])


async def _body(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> AsyncGenerator[bytes, None]:
    """Give the parts of a body: in chunks, of a known length, or until the end (RFC 9112, 6.3)."""
    if headers.get("transfer-encoding", "").lower() == "chunked":
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            while size > 0:
                part = await _some(reader, size)
                size -= len(part)
                yield part
            await reader.readexactly(2)
    elif "content-length" in headers:
        left = int(headers["content-length"])
        while left > 0:
            part = await _some(reader, left)
            left -= len(part)
            yield part
    else:
        while part := await reader.read(_READ_BYTES):
            yield part


async def _some(reader: asyncio.StreamReader, most: int) -> bytes:
    part = await reader.read(min(most, _READ_BYTES))
    if not part:
        raise EOFError
    return part


async def _objects(parts: AsyncIterator[bytes]) -> AsyncGenerator[Any, None]:
    """Give the JSON objects of lines; a line that is too long or no JSON is passed over."""
    line = bytearray()
    too_long = False
    async for part in parts:
        first, *others = part.split(b"\n")
        for number, piece in enumerate([first, *others]):
            if number:
                if line and not too_long:
                    found = _decoded(bytes(line))
                    if found is not None:
                        yield found
                line.clear()
                too_long = False
            too_long = too_long or len(line) + len(piece) > MAX_LINE_BYTES
            if not too_long:
                line += piece


def _decoded(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _multipart(body: bytes, boundary: str) -> bytes:
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="file"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    return head.encode() + body + f"\r\n--{boundary}--\r\n".encode()
