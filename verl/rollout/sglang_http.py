# SPDX-License-Identifier: Apache-2.0
"""HTTP client of one SGLang server. Knows its addresses and how it says no; starts nothing, samples nothing.

A weight update that fails answers with status 200 and `success: false`, so every answer is looked into.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp

_CONNECT_S = 30.0
_IDLE_S = 1.0  # the server closes idle connections after 5 s; a request must not be sent into one that it just closes


class SGLangError(RuntimeError):
    """The server refused a request, or failed at it."""


class SGLangUnreachableError(SGLangError):
    """Nobody answers at the server's address, or the connection broke in the middle of a request."""


class SGLangClient:
    """Speaks to one server; to be used on one event loop.

    Example:
        >>> client = SGLangClient("http://127.0.0.1:30000", max_connections=256)
        >>> await client.post("/flush_cache", {})
        >>> await client.close()
    """

    def __init__(self, url: str, max_connections: int) -> None:
        """Remember the address; nothing is connected yet.

        Args:
            url: `http://host:port`.
            max_connections: Most requests at the same time; further ones wait.
        """
        self.url = url.rstrip("/")
        self._max_connections = max_connections
        self._session: aiohttp.ClientSession | None = None

    async def get(self, path: str) -> Any:
        """Ask for something.

        Args:
            path: With its leading slash.

        Returns:
            The decoded answer; None for an empty one.

        Raises:
            SGLangError: As for `post`.
        """
        return await self._request("GET", path, None)

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        """Send something.

        Args:
            path: With its leading slash.
            body: Sent as JSON.

        Returns:
            The decoded answer; the bare text where it is no JSON, None where it is empty.

        Raises:
            SGLangUnreachableError: No connection, or it broke.
            SGLangError: A status other than 2xx, or `success: false`.
        """
        return await self._request("POST", path, body)

    async def is_healthy(self) -> bool:
        """Say whether the server has loaded its model and answers at once."""
        try:
            await asyncio.wait_for(self.get("/health"), _CONNECT_S)
        except (SGLangError, TimeoutError):
            return False
        return True

    async def close(self) -> None:
        """Close all connections; requests in flight fail."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _request(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        if self._session is None:
            # a long response may take as long as it likes: the caller's limits end it; only connecting is timed here
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._max_connections, keepalive_timeout=_IDLE_S),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),
            )
        try:
            async with self._session.request(method, self.url + path, json=body) as answer:
                return judge(path, answer.status, await answer.text())
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise SGLangUnreachableError(
                f"SGLang at {self.url}: {path} was not answered: {type(error).__name__}: {error}"
            ) from error


def judge(path: str, status: int, text: str) -> Any:
    """Look into an answer.

    Args:
        path: What was asked, for the message.
        status: HTTP status.
        text: The answer's body.

    Returns:
        The decoded body, the bare text where it is no JSON, None where it is empty.

    Raises:
        SGLangError: A status other than 2xx, or `success: false`.
    """
    try:
        decoded = json.loads(text) if text else None
    except json.JSONDecodeError:
        decoded = text
    if not 200 <= status < 300:
        raise SGLangError(f"SGLang refused {path} with status {status}: {_reason(decoded)}")
    if isinstance(decoded, dict) and decoded.get("success") is False:
        raise SGLangError(f"SGLang failed at {path}: {_reason(decoded)}")
    return decoded


def _reason(decoded: Any) -> str:
    """The sentence inside an answer, wherever it stands."""
    if isinstance(decoded, dict):
        error = decoded.get("error")
        inner = error.get("message") if isinstance(error, dict) else error
        return str(inner or decoded.get("message") or decoded)
    return str(decoded or "no reason given")
