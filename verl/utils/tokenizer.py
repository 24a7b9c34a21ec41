# SPDX-License-Identifier: Apache-2.0
"""Loading tokenizers, and decoding token ids to text together with the place of every token in that text.

Knows nothing of chat templates, rewards or reasoning steps. Needs fast (Rust) tokenizers.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Sequence
from os.path import commonprefix
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers.decoders import ByteLevel
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from verl.utils.errors import UserError

logger = logging.getLogger(__name__)

REPLACEMENT = "\ufffd"
# Names under which transformers saves a tokenizer that is nothing but its tokenizer.json.
_PLAIN_CLASSES = ("TokenizersBackend", "PreTrainedTokenizerFast")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def load_tokenizer(path: str, trust_remote_code: bool = False, key: str = "actor_rollout_ref.model.path") -> Any:
    """Load a fast tokenizer from a local folder, or from the hub or its cache when `path` names no folder.

    Args:
        path: Folder with `tokenizer.json`, or a hub name such as `Qwen/Qwen2.5-7B-Instruct`.
        trust_remote_code: Whether code shipped with the tokenizer may run.
        key: Configuration key that `path` came from, for the message.

    Returns:
        A `transformers` fast tokenizer.

    Raises:
        UserError: If there is no tokenizer at `path`, or only a slow one.
    """
    folder = Path(path).expanduser()
    if folder.is_dir() and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise UserError.for_key(
            key, path, f"must hold a tokenizer ({' and '.join(TOKENIZER_FILES)})", "Name the folder of a whole model"
        )
    looks_local = path.startswith(("/", ".", "~")) or path.count("/") != 1
    if looks_local and not folder.exists():
        raise UserError.for_key(key, path, "must be an existing folder", "Correct the path, or download the model")
    source = str(folder) if folder.is_dir() else path
    try:
        tokenizer = _class_for(source).from_pretrained(source, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as err:
        raise UserError.for_key(
            key, path, f"no tokenizer could be loaded ({_first_line(err)})", "Check the path or the network"
        ) from err
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise UserError.for_key(
            key, path, "must be a fast tokenizer (tokenizer.json)", "Convert it with transformers and save it again"
        )
    return tokenizer


def _class_for(source: str) -> Any:
    """Choose the class to load with.

    transformers 5 picks the class by the model's type where that has one of its own and rebuilds pre-tokenizer and
    decoder as that model's tokenizer has them: a Qwen2 model with another tokenizer would lose it without a word.
    """
    is_plain = get_tokenizer_config(source).get("tokenizer_class") in _PLAIN_CLASSES
    return PreTrainedTokenizerFast if is_plain else AutoTokenizer


def backend_of(tokenizer: Any) -> tokenizers.Tokenizer:
    """Return the Rust tokenizer inside a `transformers` fast tokenizer, or the argument where it is one already."""
    return tokenizer if isinstance(tokenizer, tokenizers.Tokenizer) else tokenizer.backend_tokenizer


def decode_with_starts(tokenizer: Any, ids: Sequence[int]) -> tuple[str, np.ndarray]:
    """Decode token ids and say where in the text each token begins.

    A token begins at the character that its first byte belongs to, so the tokens that share one character all
    begin there. Bytes that are no UTF-8 (an unfinished character at the end, say) become U+FFFD, as in
    `tokenizer.decode`. Special tokens, and ids that have no token, leave no text.

    Args:
        tokenizer: `transformers` fast tokenizer, or a `tokenizers.Tokenizer`.
        ids: [T] token ids of one response.

    Returns:
        The text, equal to `tokenizer.decode(ids, skip_special_tokens=True)` without any clean-up of spaces, and
        [T] int64 character indices, `len(text)` for tokens without text, never falling over the other tokens.
    """
    backend = backend_of(tokenizer)
    special = {i for i, added in backend.get_added_tokens_decoder().items() if added.special}
    token_ids = [int(i) for i in ids]
    if isinstance(backend.decoder, ByteLevel):
        return _decode_byte_level(backend, token_ids, special)
    return _decode_windows(backend, token_ids, special)


@functools.cache
def _byte_of_character() -> dict[str, int]:
    """Return the inverse of the byte-level alphabet: printable stand-in character -> byte.

    Source: the byte table of GPT-2's BPE. Printable Latin-1 bytes stand for themselves; the others, in order, are
    moved to 256 and up.
    """
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {chr(byte): byte for byte in plain}
    moved = [byte for byte in range(256) if byte not in set(plain)]
    table.update({chr(256 + place): byte for place, byte in enumerate(moved)})
    return table


@functools.lru_cache(maxsize=1 << 16)
def _bytes_of_token(token: str) -> bytes:
    """Return the bytes of a byte-level token; a token outside the alphabet (an added one) stands for its own text."""
    table = _byte_of_character()
    try:
        return bytes([table[character] for character in token])
    except KeyError:
        return token.encode("utf-8")


def _decode_byte_level(backend: tokenizers.Tokenizer, ids: list[int], special: set[int]) -> tuple[str, np.ndarray]:
    """Decode through the tokens' bytes: a token begins at the character that its first byte belongs to.

    The library's `DecodeStream` gives the same text, but holds back bytes that are no UTF-8 and decodes them anew
    with each token: 4 s for 8,000 of them, and no place for the tokens held back.
    """
    tokens = (None if token_id in special else backend.id_to_token(token_id) for token_id in ids)
    pieces = [_bytes_of_token(token) if token else b"" for token in tokens]
    sizes = np.array([len(piece) for piece in pieces], dtype=np.int64)
    data = b"".join(pieces)
    text = data.decode("utf-8", "replace")
    if not len(data):
        return text, np.zeros(len(ids), dtype=np.int64)
    first_bytes = np.minimum(sizes.cumsum() - sizes, len(data) - 1)
    return text, np.where(sizes > 0, _characters_of_bytes(data)[first_bytes], len(text))


def _characters_of_bytes(data: bytes) -> np.ndarray:
    """Number each byte's character in `data.decode("utf-8", "replace")`: [len(data)] int64."""
    begins = (np.frombuffer(data, dtype=np.uint8) & 0xC0) != 0x80  # all but continuation bytes
    view = memoryview(data)
    done = 0
    while done < len(data):
        try:
            str(view[done:], "utf-8")
            break
        except UnicodeDecodeError as error:  # these bytes become one replacement character together
            begins[done + error.start : done + error.end] = False
            begins[done + error.start] = True
            done += error.end
    return np.cumsum(begins) - 1


def _decode_windows(backend: tokenizers.Tokenizer, ids: list[int], special: set[int]) -> tuple[str, np.ndarray]:
    """Decode token by token, each behind the tokens of the characters before it, so that spacing comes out right.

    The library's `DecodeStream` does the same, but raises where a run of byte tokens turns out to be no UTF-8.
    """
    starts = np.full(len(ids), -1, dtype=np.int64)
    shown: list[int] = [place for place, token_id in enumerate(ids) if token_id not in special]
    behind: list[int] = []
    waiting: list[int] = []
    behind_text = ""
    text = ""
    for place in shown:
        starts[place] = len(text)
        waiting.append(ids[place])
        window_text = backend.decode(behind + waiting, skip_special_tokens=True)
        if len(window_text) <= len(behind_text) or window_text.endswith(REPLACEMENT):
            continue
        text += window_text[len(behind_text) :]
        behind, waiting = waiting, []
        behind_text = backend.decode(behind, skip_special_tokens=True)
    whole = backend.decode(ids, skip_special_tokens=True)
    if not whole.startswith(text):
        starts[shown] = _starts_by_prefixes(backend, [ids[place] for place in shown], whole)
    starts[starts < 0] = len(whole)
    return whole, starts


def _starts_by_prefixes(backend: tokenizers.Tokenizer, ids: list[int], whole: str) -> np.ndarray:
    """Place each token where the decoded tokens before it stop agreeing with the whole text: right, but quadratic."""
    agreed = [len(commonprefix([backend.decode(ids[:n], skip_special_tokens=True), whole])) for n in range(len(ids))]
    return np.maximum.accumulate(np.array(agreed, dtype=np.int64))


def encode_plain(tokenizer: Any, texts: Iterable[str]) -> list[list[int]]:
    """Encode texts without adding special tokens.

    Args:
        tokenizer: `transformers` fast tokenizer, or a `tokenizers.Tokenizer`.
        texts: Any number of texts.

    Returns:
        One list of token ids per text.
    """
    return [list(e.ids) for e in backend_of(tokenizer).encode_batch(list(texts), add_special_tokens=False)]


def _first_line(err: BaseException) -> str:
    return str(err).strip().splitlines()[0] if str(err).strip() else type(err).__name__
