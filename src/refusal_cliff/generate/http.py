"""JSON asked of one server: bounded in time and size, and its failures said by their kind."""

from __future__ import annotations

import asyncio
import json
import math
import socket
import ssl
import time
import zlib
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from types import ModuleType
from typing import Any, TypeAlias

from refusal_cliff.errors import RefusalCliffError, not_installed

MOST_BYTES = 64 * 1024 * 1024
"""A body longer than this, as it is sent or unpacked, is not read; answers have a few kilobytes."""
LONGEST_PAUSE = 30.0
"""Seconds waited at most before a request is sent again, whatever the server asks for."""
_FIRST_PAUSE = 0.5
_LONGEST_CONNECT = 30.0
_AGAIN = frozenset({408, 409, 429})
_SHOWN = 2000
_Reply: TypeAlias = tuple[int, Mapping[str, str], bytes]
"""Status, headers and body."""


class Unanswered(Exception):
    """A request without a usable answer; its text says why."""


class Failed(Unanswered):
    """The server could not be reached or failed, each time that it was asked."""


class Refused(Unanswered):
    """The server says that the request is at fault.

    Args:
        status: Its HTTP status, 3xx or 4xx.
        text: What it says.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"status {status}: {text}")
        self.status = status


class Unreadable(Unanswered):
    """There is a body, but no JSON object within the limits."""


class JsonServer:
    """Asks a server for JSON. Use as an asynchronous context manager.

    Args:
        base_url: Address that paths are put after.
        key: Sent as bearer token; ``None`` sends none.
        timeout: Seconds for one whole answer, from the connection to the last byte.
        retries: How often a request that failed is sent again, with growing pauses.

    Raises:
        RefusalCliffError: The address cannot be used, or the package ``httpx2`` is missing.
    """

    def __init__(self, base_url: str, key: str | None, timeout: float, retries: int) -> None:
        self._http = _httpx()
        self._base, self._timeout, self._retries = base_url.rstrip("/"), timeout, retries
        headers = {
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "Content-Type": "application/json",
        }
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        limits = self._http.Limits(max_connections=None)
        waits = self._http.Timeout(timeout, connect=min(timeout, _LONGEST_CONNECT), pool=None)
        try:
            self._http.URL(self._base)
            self._client = self._http.AsyncClient(headers=headers, timeout=waits, limits=limits)
        except (self._http.InvalidURL, ValueError) as error:
            raise RefusalCliffError(
                f"The address of the endpoint cannot be used: {error}"
            ) from None

    async def __aenter__(self) -> JsonServer:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def ask(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The object that the server answers with; NaN and infinities in it are read as null.

        Args:
            path: After the address.
            body: What is posted; ``None`` gets the path instead.

        Raises:
            Unanswered: One of the kinds above.
        """
        why = ""
        for attempt in range(self._retries + 1):
            pause = None
            try:
                async with asyncio.timeout(self._timeout):
                    status, headers, text = await self._once(path, body)
                if status < 300:
                    return _object(text)
                told = _told(text)
                if status < 400:  # never followed: the key is for this address alone
                    told = f"it sends to {headers.get('Location')!r}; give that address"
                if status < 500 and status not in _AGAIN:
                    raise Refused(status, told)
                why = f"status {status}: {told}"
                pause = _asked_pause(headers)
            except TimeoutError:
                why = f"there was no whole answer within {self._timeout:g} seconds"
            except (self._http.TransportError, OSError) as error:
                why = _why(error, self._base)
            if attempt < self._retries:
                growing = min(_FIRST_PAUSE * 2**attempt, LONGEST_PAUSE)
                await asyncio.sleep(growing if pause is None else min(pause, LONGEST_PAUSE))
        raise Failed(why)

    async def _once(self, path: str, body: Mapping[str, Any] | None) -> _Reply:
        method = "GET" if body is None else "POST"
        async with self._client.stream(method, f"{self._base}{path}", json=body) as response:
            unpack = _Unpacking(response.headers.get("Content-Encoding", ""))
            async for chunk in response.aiter_raw():
                unpack.add(chunk)
            return response.status_code, response.headers, unpack.text()


class _Unpacking:
    """A body that is unpacked as it comes, and given up when it is too long."""

    def __init__(self, encoding: str) -> None:
        kind = encoding.strip().lower()
        if kind not in ("", "identity", "gzip", "deflate"):
            raise Unreadable(f"its body is packed as {kind[:20]!r}, which was not asked for")
        packed = kind in ("gzip", "deflate")
        self._packed = zlib.decompressobj(32 + zlib.MAX_WBITS) if packed else None
        self._pieces: list[bytes] = []
        self._sent = self._unpacked = 0

    def add(self, chunk: bytes) -> None:
        self._sent += len(chunk)
        try:
            room = MOST_BYTES - self._unpacked + 1
            piece = chunk if self._packed is None else self._packed.decompress(chunk, room)
        except zlib.error as error:
            raise Unreadable(f"its packed body is damaged ({error})") from None
        self._pieces.append(piece)
        self._unpacked += len(piece)
        if max(self._sent, self._unpacked) > MOST_BYTES:
            raise Unreadable(f"its body is longer than {MOST_BYTES >> 20} MB")

    def text(self) -> bytes:
        return b"".join(self._pieces)


def _object(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text, parse_constant=lambda _: None)
    except ValueError as error:
        raise Unreadable(f"its body is not JSON ({error})") from None
    except RecursionError:
        raise Unreadable("its JSON is nested too deep") from None
    if not isinstance(found, dict):
        raise Unreadable("its body is no JSON object")
    return found


def _told(text: bytes) -> str:
    """What a body of an error says, in the server's words."""
    try:
        error = _object(text).get("error")
    except Unreadable:
        error = None
    message = error.get("message") if isinstance(error, Mapping) else error
    return message if isinstance(message, str) else text[:_SHOWN].decode(errors="replace")


def _asked_pause(headers: Mapping[str, str]) -> float | None:
    """Seconds that ``Retry-After`` asks for, a number or a date; ``None`` if it is nonsense."""
    asked = headers.get("Retry-After", "")
    try:
        pause = float(asked)
    except ValueError:
        try:
            pause = parsedate_to_datetime(asked).timestamp() - time.time()
        except (ValueError, OverflowError, OSError):
            return None
    return pause if math.isfinite(pause) and pause >= 0 else None


def _why(error: BaseException, address: str) -> str:
    """Which step of a connection failed."""
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) and cause not in causes:
        causes.append(cause)
    kinds = {
        ssl.SSLCertVerificationError: "TLS failed, its certificate is not trusted",
        ssl.SSLError: "TLS failed (does the address begin with http where it says https?)",
        socket.gaierror: "its name is not known; check the address or the network",
        ConnectionRefusedError: "it refuses connections: nothing listens at this port",
    }
    for kind, words in kinds.items():
        if found := next((cause for cause in causes if isinstance(cause, kind)), None):
            return f"{words} ({found})"
    said = str(error) or type(error).__name__
    return f"the connection to {address} broke or timed out ({type(error).__name__}: {said})"


def _httpx() -> ModuleType:
    try:
        import httpx2
    except ImportError as error:
        what = "Endpoints are asked through the package httpx2"
        raise not_installed(what, "api") from error
    return httpx2
