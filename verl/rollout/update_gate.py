# SPDX-License-Identifier: Apache-2.0
"""The gate before an engine: closed while its weights change, and aware of who is still inside. Knows no engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class UpdateGate:
    """Lets requests through unless it is closed. All use is on one event loop.

    Example:
        >>> async with gate.passing():
        ...     ...  # sample a response
        >>> gate.close()
        >>> await gate.drained()
        >>> gate.open()
    """

    def __init__(self) -> None:
        """Start open, with nobody inside."""
        self.in_flight = 0
        self._opened, self._empty = asyncio.Event(), asyncio.Event()
        self._opened.set()
        self._empty.set()

    @asynccontextmanager
    async def passing(self) -> AsyncIterator[None]:
        """Wait until the gate is open; inside until the block ends."""
        while not self._opened.is_set():  # it may have closed again before the one who waited gets his turn
            await self._opened.wait()
        self.in_flight += 1
        self._empty.clear()
        try:
            yield
        finally:
            self.in_flight -= 1
            if not self.in_flight:
                self._empty.set()

    def close(self) -> None:
        """Hold back who comes from now on."""
        self._opened.clear()

    def open(self) -> None:
        """Let everyone through again."""
        self._opened.set()

    async def drained(self) -> None:
        """Wait until nobody is inside."""
        while self.in_flight:
            await self._empty.wait()
