# SPDX-License-Identifier: Apache-2.0
"""Every way in which an SGLang server says no is an error, whatever its status."""

from __future__ import annotations

import asyncio

import pytest

from verl.rollout.sglang_http import SGLangClient, SGLangError, SGLangUnreachableError, judge
from verl.rollout.sglang_server import hold_port


@pytest.mark.parametrize(
    ("status", "text", "value"),
    [
        (200, '{"success": true, "message": "m"}', {"success": True, "message": "m"}),
        (200, '{"text": "a"}', {"text": "a"}),
        (200, "Cache flushed.\n", "Cache flushed.\n"),
        (200, "", None),
        (200, "[1]", [1]),
    ],
)
def test_what_is_fine(status: int, text: str, value: object) -> None:
    assert judge("/path", status, text) == value


@pytest.mark.parametrize(
    ("status", "text", "said"),
    [
        # the trap: the update failed, and the status says that all is well
        (200, '{"success": false, "message": "must run between"}', "failed at /path: must run between"),
        (400, '{"error": {"message": "too long"}}', "refused /path with status 400: too long"),
        (400, "Flush cache failed.", "status 400: Flush cache failed."),
        (500, '{"error": "out of memory"}', "status 500: out of memory"),
        (503, "", "status 503: no reason given"),
        (404, '{"detail": "Not Found"}', "Not Found"),
    ],
)
def test_what_is_not(status: int, text: str, said: str) -> None:
    with pytest.raises(SGLangError, match=said):
        judge("/path", status, text)


def test_nobody_answers() -> None:
    async def ask(port: int) -> bool:
        client = SGLangClient(f"http://127.0.0.1:{port}/", max_connections=2)
        try:
            assert not client.url.endswith("/")
            with pytest.raises(SGLangUnreachableError, match="/flush_cache was not answered"):
                await client.post("/flush_cache", {})
            return await client.is_healthy()
        finally:
            await client.close()

    with hold_port() as holder:
        assert asyncio.run(ask(holder.getsockname()[1])) is False
