# SPDX-License-Identifier: Apache-2.0
"""The command line and environment of an SGLang server, and its process."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest

from verl.rollout.base import RolloutSpec, ServerSettings
from verl.rollout.sglang_server import (
    SGLangServerProcess,
    hold_port,
    kv_cache_tokens,
    launch_command,
    server_environment,
)


def spec(**changes: Any) -> RolloutSpec:
    return RolloutSpec(**({"model_path": "m", "dtype": "bfloat16", "max_model_len": 96} | changes))


def options(command: list[str]) -> dict[str, str | bool]:
    """Command line to names and values; a flag is True."""
    found: dict[str, str | bool] = {}
    for place, word in enumerate(command):
        if word.startswith("--"):
            follows = command[place + 1] if place + 1 < len(command) else "--"
            found[word] = True if follows.startswith("--") else follows
    return found


def test_the_command_says_what_the_settings_say() -> None:
    settings = ServerSettings(python="/env/bin/python")
    given = {"max_num_seqs": 7, "max_num_batched_tokens": 512, "tensor_parallel_size": 2, "seed": 5, "device": "cuda"}
    command = launch_command(spec(**given), settings, port=3, kv_tokens=None)
    assert command[:3] == ["/env/bin/python", "-m", "sglang.launch_server"]
    said = options(command)
    expected = {
        "--model-path": "m",
        "--dtype": "bfloat16",
        "--device": "cuda",
        "--tp-size": "2",
        "--context-length": "96",
        "--max-running-requests": "7",
        "--chunked-prefill-size": "512",
        "--random-seed": "5",
        "--port": "3",
        "--host": "127.0.0.1",
        "--skip-tokenizer-init": True,
    }
    assert said.items() >= expected.items()
    assert not said.keys() & {
        "--disable-cuda-graph",
        "--max-total-tokens",
        "--attention-backend",
        "--trust-remote-code",
    }
    assert "--disable-radix-cache" not in said


def test_switches_and_the_cpu() -> None:
    switched = spec(enable_chunked_prefill=False, enable_prefix_caching=False, trust_remote_code=True, device="cpu")
    command = launch_command(switched, ServerSettings(python="p"), port=3, kv_tokens=77)
    assert command[command.index("--chunked-prefill-size") + 1] == "-1"
    said = options(command)
    assert {"--disable-radix-cache", "--trust-remote-code", "--disable-cuda-graph"} <= said.keys()
    assert (said["--max-total-tokens"], said["--attention-backend"]) == ("77", "torch_native")


def test_the_users_arguments_win() -> None:
    settings = ServerSettings(
        python="p", arguments={"attention_backend": "fa3", "enable_metrics": True, "mem_fraction_static": None}
    )
    said = options(launch_command(spec(), settings, port=3, kv_tokens=1))
    assert said["--attention-backend"] == "fa3"
    assert said["--enable-metrics"] is True
    assert "--mem-fraction-static" not in said


def test_the_environment_is_the_servers_own() -> None:
    own = {"PATH": "/bin", "PYTHONPATH": "/mine", "VIRTUAL_ENV": "/mine", "SGLANG_RETURN_ORIGINAL_LOGPROB": "1"}
    environment = server_environment(spec(), ServerSettings(env={"A": "b"}), own)
    assert environment == {"PATH": "/bin", "SGLANG_USE_CPU_ENGINE": "1", "A": "b"}
    assert "SGLANG_USE_CPU_ENGINE" not in server_environment(spec(device="cuda"), ServerSettings(), own)
    assert own["PYTHONPATH"] == "/mine"


def test_tokens_of_a_cache() -> None:
    # 2 (key and value) x 3 layers x 2 heads x 4 numbers x 4 bytes = 192 bytes for a token
    model = SimpleNamespace(num_hidden_layers=3, num_key_value_heads=2, num_attention_heads=8, hidden_size=32)
    assert kv_cache_tokens(model, 4, 1920) == 10
    assert kv_cache_tokens(model, 4, 1) == 1
    model.head_dim = 8
    assert kv_cache_tokens(model, 4, 1920) == 5


def test_a_process_that_ends_leaves_its_words() -> None:
    process = SGLangServerProcess([sys.executable, "-c", "print('word'); raise SystemExit(2)"], {})
    process.start()
    deadline = time.monotonic() + 30
    while process.is_alive:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert "word" in process.log_tail()
    asyncio.run(process.stop())
    assert process.log_tail() == "(no log)"


def test_stopping_what_was_never_started() -> None:
    process = SGLangServerProcess(["true"], {})
    asyncio.run(process.stop())
    assert not process.is_alive


def test_a_port_is_held_for_its_server_alone() -> None:
    async def listen(port: int) -> tuple[str, int]:
        server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", port)
        async with server:
            return server.sockets[0].getsockname()  # type: ignore[no-any-return]

    with hold_port() as holder, hold_port() as other, socket.socket() as third:
        port = holder.getsockname()[1]
        assert other.getsockname()[1] != port
        with pytest.raises(OSError, match="already in use"):
            third.bind(("127.0.0.1", port))
        assert asyncio.run(listen(port))[1] == port


DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);"


@pytest.mark.parametrize("ears", ["", DEAF], ids=["hears", "deaf"])
def test_stop_ends_the_process_by_force_if_need_be(ears: str) -> None:
    process = SGLangServerProcess([sys.executable, "-c", f"{ears} import time; time.sleep(600)"], {}, grace_s=0.5)
    process.start()
    assert process.is_alive
    asyncio.run(process.stop())
    assert not process.is_alive
