# SPDX-License-Identifier: Apache-2.0
"""Is this folder a PRM that we can run? Asked of config, safetensors headers and tokenizer, before anything starts.

Reads no weights: a safetensors file begins with a list of its tensors. Which way the head points is for `selftest`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl.rewards.prm.files import find_folder, read_json, tensor_shapes
from verl.rewards.prm.heads import HeadSpec, check_shapes, load_head
from verl.rewards.prm.scoring_model import REFERENCE_KEY
from verl.rewards.prm.spec import PATH_KEY, LoadedAdapter, PRMSpec, load_adapter
from verl.rewards.prm.weights import find_backbone
from verl.utils.errors import UserError
from verl.utils.tokenizer import TOKENIZER_FILES, backend_of, load_tokenizer

__all__ = ["PRMFacts", "check_prm", "check_reference", "find_folder", "tensor_shapes"]


@dataclass(frozen=True)
class PRMFacts:
    """What was found.

    Args:
        folder: Where the PRM lies.
        adapter: Name of its adapter.
        hidden_size: Width of the backbone.
        context_tokens: Its own context.
        max_tokens: Longest input its engine will take.
        notices: What the user should know, one sentence each.
    """

    folder: Path
    adapter: str
    hidden_size: int
    context_tokens: int
    max_tokens: int
    notices: tuple[str, ...]


def check_prm(spec: PRMSpec, max_prompt_tokens: int = 0, max_response_tokens: int = 0) -> PRMFacts:
    """Check a PRM before Ray or an engine starts.

    Args:
        spec: The PRM and how it is to be run.
        max_prompt_tokens: Longest prompt of the data.
        max_response_tokens: Longest response.

    Returns:
        Facts and notices.

    Raises:
        UserError: The folder is no PRM of a known family, or cannot be run as asked.
    """
    loaded = load_adapter(spec)
    config = read_json(loaded.folder / "config.json", spec.path)
    notices = [f"PRM adapter {loaded.name}: {loaded.reason}", *_check_weights(spec, loaded, config)]
    longest = max_prompt_tokens + max_response_tokens
    if longest > loaded.context_tokens:
        what = {
            "window": "longer ones are scored in overlapping windows",
            "extend": f"longer ones are run beyond it, up to {loaded.max_tokens} tokens",
            "error": "longer ones have no score, and on_error decides",
        }[spec.overlong]
        notices.append(
            f"prompt and response can have {longest} tokens, the PRM's context is {loaded.context_tokens}: {what} "
            f"(reward_model.process_reward.overlong={spec.overlong})"
        )
    width = int(config.get("hidden_size") or 0)
    return PRMFacts(loaded.folder, loaded.name, width, loaded.context_tokens, loaded.max_tokens, tuple(notices))


def check_reference(spec: PRMSpec, loaded: LoadedAdapter) -> None:
    """Check the language model that an implicit PRM is compared with.

    Args:
        spec: With its path.
        loaded: The PRM's adapter, with the longest input.

    Raises:
        UserError: It is missing, is no language model, splits text into other tokens, or reads shorter inputs.
    """
    path, mend = spec.reference_path, "Name the model that the PRM was trained from"
    if not path:
        raise UserError.for_key(REFERENCE_KEY, path, "an implicit PRM needs a reference model", mend)
    folder = find_folder(path, REFERENCE_KEY)
    config = read_json(folder / "config.json", path, REFERENCE_KEY)
    shapes = tensor_shapes(folder)
    if shapes is not None:
        check_shapes(shapes, HeadSpec("log_ratio"), config, path, REFERENCE_KEY)
        find_backbone(folder, REFERENCE_KEY)
    if any((folder / name).is_file() for name in TOKENIZER_FILES):
        own, other = (
            backend_of(load_tokenizer(str(each), key=key)).get_vocab()
            for each, key in ((loaded.folder, PATH_KEY), (folder, REFERENCE_KEY))
        )
        if own != other:
            raise UserError.for_key(
                REFERENCE_KEY, path, "must have the PRM's tokenizer, but its vocabulary differs", mend
            )
    context = int(config.get("max_position_embeddings") or 0)
    if context < loaded.max_tokens and spec.overlong != "extend":
        raise UserError.for_key(
            REFERENCE_KEY,
            path,
            f"reads {context} tokens, the PRM is given up to {loaded.max_tokens}",
            f"Set reward_model.max_length={context}, or name a reference with a longer context",
        )


def _check_weights(spec: PRMSpec, loaded: LoadedAdapter, config: Mapping[str, Any]) -> Iterator[str]:
    """Check head and backbone as far as headers tell; yields notices."""
    folder, head = loaded.folder, loaded.head
    shapes = tensor_shapes(folder)
    if head.kind == "log_ratio":
        check_reference(spec, loaded)
    if head.kind == "reward_file":
        load_head(folder, head)  # a small file of its own
    if shapes is None:
        yield f"{folder} holds no safetensors file: its head is checked only when it is loaded"
        return
    check_shapes(shapes, head, config, spec.path)
    find_backbone(folder)
