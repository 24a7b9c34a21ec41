# SPDX-License-Identifier: Apache-2.0
"""Small tokenizers built in memory, so that tests need no files: byte-level BPE, byte fallback, single characters."""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

STEP_TOKEN = "<extra_0>"
CHAT_TEMPLATE = (
    "{%- for m in messages %}{{- '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", STEP_TOKEN)


def byte_tokenizer(merges: tuple[tuple[str, str], ...] = ()) -> PreTrainedTokenizerFast:
    """Byte-level BPE over the 256 bytes plus `merges` (in the byte alphabet), with chat and step tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: place for place, token in enumerate([*alphabet, *("".join(pair) for pair in merges)])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=list(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return _wrap(backend)


def byte_fallback_tokenizer() -> PreTrainedTokenizerFast:
    """A sentencepiece-like layout: some pieces, bytes for everything else."""
    pieces = ["<unk>", *(f"<0x{b:02X}>" for b in range(256)), "▁", "a", "b", "▁a", "é", "中"]
    backend = Tokenizer(
        models.BPE(
            vocab={p: i for i, p in enumerate(pieces)}, merges=[("▁", "a")], byte_fallback=True, unk_token="<unk>"
        )
    )
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _wrap(backend)


def metaspace_tokenizer() -> PreTrainedTokenizerFast:
    """Another sentencepiece-like layout: a unigram model over blanks written as `▁`, bytes for everything else."""
    scored = [("<unk>", -20.0), *((f"<0x{b:02X}>", -12.0) for b in range(256))]
    pieces = ["▁", "▁so", "▁x", "an", "swer", "=", "1", "$", "\\", "frac", "{", "}", "é", "中", "文", "\n", "\n\n", "."]
    backend = Tokenizer(
        models.Unigram([*scored, *((p, -1.0 - 0.1 * n) for n, p in enumerate(pieces))], unk_id=0, byte_fallback=True)
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _wrap(backend)


def word_piece_tokenizer() -> PreTrainedTokenizerFast:
    """BERT's layout: words, their continuations with `##`, blanks lost; the decoder puts them back by rule."""
    characters = [chr(code) for code in range(33, 127)] + ["é", "中"]
    words = ["so", "answer", "is", "</think>"]
    pieces = ["[UNK]", *words, *characters, *(f"##{c}" for c in characters), "##er", "##s"]
    backend = Tokenizer(models.WordPiece({p: n for n, p in enumerate(dict.fromkeys(pieces))}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoders.WordPiece(cleanup=True)
    return _wrap(backend)


def char_tokenizer(characters: str) -> PreTrainedTokenizerFast:
    """One token per character of `characters`."""
    vocab = {"<unk>": 0} | {c: i + 1 for i, c in enumerate(sorted(set(characters)))}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    return _wrap(backend)


def qwen_with_step_token(folder: Path) -> PreTrainedTokenizerFast:
    """The real Qwen2.5 tokenizer with `<|quad_end|>` (id 151651) renamed to the PRM's step token."""
    text = (folder / "tokenizer.json").read_text(encoding="utf-8").replace("<|quad_end|>", STEP_TOKEN)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(text), eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    return tokenizer


def _wrap(backend: Tokenizer) -> PreTrainedTokenizerFast:
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
