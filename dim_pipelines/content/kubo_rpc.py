"""Calls to a Kubo's RPC through `ipfshttpclient`, with one place for its quirks and its errors.

`ipfshttpclient.Client(address, session=True)` is made once per thread; `connect()` would refuse this Kubo's
version. What the client has no method for goes through the same client's session.
"""

from __future__ import annotations

import socket
import threading
import time
import uuid
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import ipfshttpclient
import ipfshttpclient.exceptions as foreign
import requests

from dim_pipelines.content.kubo_address import parse_address
from dim_pipelines.errors import (
    ConfigurationError,
    ContentError,
    ContentNotFound,
    ContentUnavailable,
)

CONNECT_S: Final = 5.0
"""How long to wait for the address to take a connection."""
RETRY_AFTER_S: Final = (0.1, 0.4, 1.5)
"""Pauses before a call is made again when the connection broke: a supervised Kubo is back after 0.1 to 1 s."""
_READ_BYTES: Final = 1 << 17

Json = dict[str, Any]


class KuboRpc:
    """The RPC of one Kubo, from any thread."""

    def __init__(self, address: str, timeout_s: float, secret: str | None = None) -> None:
        """Take the address of the RPC; nothing is sent yet.

        Args:
            address: a multiaddr or an http URL.
            timeout_s: between two bytes of an answer.
            secret: the bearer secret that the Kubo asks for (`content.kubo_address.find_secret`).

        Raises:
            ConfigurationError: the address has no form that is known.
        """
        self.address = address
        self.timeout_s = timeout_s
        self._headers = {"Authorization": f"Bearer {secret}"} if secret else {}
        self._multiaddr = parse_address(address)
        self._local = threading.local()
        self._clients: list[ipfshttpclient.Client] = []
        self._has_answered = False
        self._client()  # refuses a malformed address now

    def close(self) -> None:
        """Close the sessions of all threads; none may be calling."""
        while self._clients:
            self._clients.pop().close()

    def json(
        self,
        path: str,
        *arguments: str,
        options: Mapping[str, str] | None = None,
        body: Iterable[bytes] | None = None,
        timeout_s: float | None = None,
    ) -> list[Json]:
        """Call and decode every JSON object of the answer.

        Args:
            path: of the RPC, without `/api/v0`.
            arguments: the `arg` parameters.
            options: the other parameters.
            body: parts of one file to upload; can be gone through more than once.
            timeout_s: between two bytes of the answer; the client's own when left out.

        Raises:
            ContentNotFound: Kubo cannot find what was asked for within its time.
            ContentUnavailable: nothing answers, or there is no space.
            ConfigurationError: what answers is not a Kubo's RPC, or refuses us.
        """
        found = self._call(path, arguments, options, body, "json", timeout_s)
        if not all(isinstance(each, dict) for each in found):
            raise self.not_a_kubo()
        return list(found)

    def read(self, path: str, *arguments: str, options: Mapping[str, str] | None = None) -> bytes:
        """Call and give the bytes of the answer, which may have been cut: the caller verifies.

        Raises: as `json`.
        """
        data: bytes = self._call(path, arguments, options, None, "none", None)
        return data

    def stream(self, path: str, *arguments: str, options: Mapping[str, str] | None = None) -> Iterator[Json]:
        """Call and give each JSON object of the answer as it comes; leaving the loop ends the call at Kubo too.

        Raises: as `json`.
        """
        try:
            with self._client()._client.request(
                path, arguments, opts=dict(options or {}), decoder="json", stream=True
            ) as answer:
                yield from answer
        except (foreign.ConnectionError, foreign.ProtocolError, requests.RequestException) as error:
            raise self._unavailable() from error
        except foreign.Error as error:
            raise self._translated(path, arguments, error) from error

    def _call(
        self,
        path: str,
        arguments: tuple[str, ...],
        options: Mapping[str, str] | None,
        body: Iterable[bytes] | None,
        decoder: str,
        timeout_s: float | None,
    ) -> Any:
        pauses = iter(RETRY_AFTER_S)
        while True:
            sent: dict[str, Any] = {"opts": dict(options or {}), "decoder": decoder}
            if body is not None:
                boundary = uuid.uuid4().hex
                sent["data"] = _multipart(body, boundary)
                sent["headers"] = {"Content-Type": f'multipart/form-data; boundary="{boundary}"'}
            if timeout_s is not None:
                sent["timeout"] = (CONNECT_S, timeout_s)
            try:
                answer = self._client()._client.request(path, arguments, **sent)
                self._has_answered = True
                return answer
            except (foreign.ConnectionError, foreign.ProtocolError, requests.ConnectionError) as error:
                # Every call that DIM makes may be made twice; a session whose Kubo was restarted breaks once.
                pause = next(pauses, None) if self._has_answered else None
                if pause is None:
                    raise self._unavailable() from error
                time.sleep(pause)
            except foreign.Error as error:
                raise self._translated(path, arguments, error) from error
            except (requests.RequestException, OSError, ValueError, AssertionError) as error:
                raise self._unavailable() from error

    def _unavailable(self) -> ContentUnavailable:
        return ContentUnavailable(
            f"no Kubo answers at {self.address}",
            hint="is it running? its RPC address stands in the file `api` of its repository",
        )

    def _translated(self, path: str, arguments: tuple[str, ...], error: foreign.Error) -> Exception:
        what = f"{path.strip('/')} {arguments[0] if arguments else ''}".strip()
        if isinstance(error, foreign.TimeoutError):
            return ContentUnavailable(
                f"the Kubo at {self.address} did not answer {what} in time", hint="is it overloaded, or stopped?"
            )
        if isinstance(error, foreign.ErrorResponse):
            message = str(error.args[0] if error.args else error)
            if any(text in message for text in ("not found", "could not find", "deadline exceeded")):
                return ContentNotFound(f"the Kubo at {self.address} cannot find {arguments[0] if arguments else what}")
            if "no space left" in message or "disk quota" in message:
                return ContentUnavailable(
                    f"no space left in the Kubo at {self.address}", hint="free disk space, or run: dim gc"
                )
            return ContentError(f"the Kubo at {self.address} refused {what}: {message}")
        if isinstance(error, foreign.StatusError):
            response = getattr(error.original, "response", None)
            if getattr(response, "status_code", None) == 403:
                return ConfigurationError(
                    f"the Kubo at {self.address} does not let us in",
                    hint="it asks for a secret: set DIM_KUBO_SECRET (API.Authorizations in its config)",
                )
        return self.not_a_kubo()

    def not_a_kubo(self) -> ConfigurationError:
        """Say that something answers, but something else."""
        return ConfigurationError(
            f"what answers at {self.address} is not the RPC of a Kubo",
            hint="the RPC is the address in Addresses.API (mostly port 5001), not the gateway",
        )

    def _client(self) -> ipfshttpclient.Client:
        client: ipfshttpclient.Client | None = getattr(self._local, "client", None)
        if client is None:
            client = self._local.client = self._new_client()
            self._clients.append(client)
        return client

    def _new_client(self) -> ipfshttpclient.Client:
        try:
            client = ipfshttpclient.Client(
                self._multiaddr,
                session=True,
                timeout=(CONNECT_S, self.timeout_s),
                chunk_size=_READ_BYTES,
                headers=self._headers,
            )
        except (foreign.AddressError, ValueError, TypeError) as error:
            raise ConfigurationError(
                f"not the address of a Kubo: {self.address!r}", hint="an address is like /ip4/127.0.0.1/tcp/5001"
            ) from error
        session = client._client._session
        session.trust_env = False  # a Kubo is reached directly, and .netrc is not read for every call
        if session.family in (socket.AF_INET, socket.AF_INET6):
            # The client's own adapter passes an argument that urllib3 2 warns about; the stock one does as well here.
            session.family = socket.AF_UNSPEC
            session.mount("http://", requests.adapters.HTTPAdapter())
        else:
            warnings.filterwarnings("ignore", message="The 'strict' parameter", category=FutureWarning)
        return client


def _multipart(body: Iterable[bytes], boundary: str) -> Iterator[bytes]:
    yield (
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="file"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    ).encode()
    yield from body
    yield f"\r\n--{boundary}--\r\n".encode()
