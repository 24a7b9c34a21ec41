# SPDX-License-Identifier: Apache-2.0
"""A server with SGLang's addresses and manners and without a model, for tests of what speaks to it.

It takes new weights over a real process group, made from the same calls of torch as SGLang makes it, and only while an
update is open. `DOUBLE_BEHAVIOUR` says what goes wrong: `no_start`, `replicas`,
`die_at_generate`, `die_at_update`, `slow`, `spoil` (a bit of what was sent).
"""

from __future__ import annotations

import asyncio
import importlib
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

BEHAVIOUR = os.environ.get("DOUBLE_BEHAVIOUR", "")


class Double:
    """The server's state."""

    def __init__(self) -> None:
        self.groups: dict[str, Any] = {}
        self.sums_of: dict[str, float] = {}
        self.digests_of: dict[str, str] = {}
        self.weights: Any = None
        self.is_updating = False
        self.goes_on = asyncio.Event()
        self.goes_on.set()
        self.running = 0

    async def generate(self, request: web.Request) -> web.Response:
        if BEHAVIOUR == "die_at_generate":
            sys.stderr.write("the double has seen enough\n")
            sys.stderr.flush()
            os._exit(3)
        body = await request.json()
        params = body["sampling_params"]
        if len(body["input_ids"]) > 50:
            return web.json_response({"error": {"message": "the prompt is too long"}}, status=400)
        self.running += 1
        await asyncio.sleep(0.3 if BEHAVIOUR == "slow" else 0.01)
        await self.goes_on.wait()
        self.running -= 1
        stops = params["stop_token_ids"]
        tokens = [7] * (params["max_new_tokens"] - 1) + [stops[0] if stops else 7]
        reason = {"type": "abort", "message": "m"} if params["top_k"] == 99 else {"type": "stop" if stops else "length"}
        entries = [[-0.5, token, None] for token in tokens]
        return web.json_response({"meta_info": {"output_token_logprobs": entries, "finish_reason": reason}})

    async def init_group(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.weights = importlib.import_module("sglang.weights")  # torch: only where weights are sent
        self.groups[body["group_name"]] = await asyncio.to_thread(self.weights.join, body)
        return web.json_response({"success": True, "message": "joined"})

    async def leave_group(self, request: web.Request) -> web.Response:
        found = self.groups.pop((await request.json())["group_name"], None)
        return web.json_response({"success": found is not None, "message": "The group does not exist."})

    async def begin(self, request: web.Request) -> web.Response:
        if self.running and self.goes_on.is_set():
            return web.json_response({"success": False, "message": "requests are running"})
        self.is_updating = True
        return web.json_response({"success": True, "message": "Success"})

    async def update(self, request: web.Request) -> web.Response:
        if BEHAVIOUR == "die_at_update":
            os._exit(4)
        if not self.is_updating:
            return web.json_response({"success": False, "message": "must run between begin and end"})
        body = await request.json()
        group, spoils = self.groups[body["group_name"]], BEHAVIOUR == "spoil"
        sums, digests = await asyncio.to_thread(self.weights.receive, body, group, spoils)
        self.sums_of |= sums
        self.digests_of |= digests
        return web.json_response({"success": True, "message": "Succeeded"})

    async def end(self, request: web.Request) -> web.Response:
        self.is_updating = False
        return web.json_response({"success": True, "message": "Success"})

    async def check(self, request: web.Request) -> web.Response:
        if (await request.json())["action"] != "checksum":
            return web.json_response({"success": False, "message": "Unsupported action"}, status=400)
        return web.json_response({"success": True, "ranks": [{"checksums": self.digests_of}]})

    async def flush(self, request: web.Request) -> web.Response:
        if self.running and float(request.query["timeout"]):
            return web.Response(text="Timed out waiting for idle state.", status=400)
        return web.Response(text="Cache flushed.")

    async def pause(self, request: web.Request) -> web.Response:
        if (await request.json())["mode"] != "retract":  # `abort` ends requests, `in_place` keeps what was computed
            return web.json_response({"error": "not what frozen responses need"}, status=400)
        self.goes_on.clear()
        return web.json_response({"status": "ok"})

    async def go_on(self, request: web.Request) -> web.Response:
        self.goes_on.set()
        return web.json_response({"status": "ok"})

    async def sums(self, request: web.Request) -> web.Response:
        """What has arrived; not one of SGLang's addresses."""
        return web.json_response(self.sums_of)


def saying(make: Callable[[], web.Response]) -> Callable[[web.Request], Awaitable[web.Response]]:
    """A handler that always answers the same."""

    async def handler(_: web.Request) -> web.Response:
        return make()

    return handler


def main() -> None:
    arguments = dict(zip(sys.argv[1:], sys.argv[2:], strict=False))
    if BEHAVIOUR == "no_start":
        sys.exit("unrecognized arguments: the double does not want to start")
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])  # SGLang has processes of its own, too
    double, app = Double(), web.Application()
    info = {"tp_size": 1, "dp_size": 2 if BEHAVIOUR == "replicas" else 1, "pp_size": 1}
    app.router.add_get("/health", saying(web.Response))
    app.router.add_get("/server_info", saying(lambda: web.json_response(info)))
    app.router.add_get("/sums", double.sums)
    app.router.add_post("/update_weight_version", saying(lambda: web.json_response({"success": True})))
    handlers = {
        "/generate": double.generate,
        "/init_weights_update_group": double.init_group,
        "/begin_weight_update": double.begin,
        "/weights_checker": double.check,
        "/flush_cache": double.flush,
        "/pause_generation": double.pause,
        "/continue_generation": double.go_on,
        "/update_weights_from_distributed": double.update,
        "/end_weight_update": double.end,
        "/destroy_weights_update_group": double.leave_group,
    }
    for path, handler in handlers.items():
        app.router.add_post(path, handler)
    web.run_app(app, host=arguments["--host"], port=int(arguments["--port"]), print=None)


if __name__ == "__main__":
    main()
