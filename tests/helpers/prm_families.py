# SPDX-License-Identifier: Apache-2.0
"""A tiny random checkpoint of every PRM family: files, tensor names and kind of tokenizer of the published one.

`save_family("skywork_prm", folder)` writes one; `family_spec` gives the `PRMSpec` that runs it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2ForTokenClassification,
)

from tests.helpers.prm import save_tiny_prm
from tests.helpers.tokenizers import byte_tokenizer
from verl.rewards.prm.spec import PRMSpec

CONTEXT = 1024
NEWLINE_MERGES = ((".", "Ċ"), ("Ċ", "Ċ"), ("$", "Ċ"))
"""Tokens of real byte-level vocabularies that hold a line end: none of them may be taken for a separator."""
LLAMA_TEMPLATE = (
    "{{- bos_token }}{{- '<|start_header_id|>system<|end_header_id|>\n\nBe exact.<|eot_id|>' }}"
    "{%- for m in messages %}{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' }}"
    "{{- m['content'] | trim + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)


def llama3_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with Llama 3's special tokens, its chat template's shape, and a `<|begin_of_text|>` in front."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ċ", "Ċ"), ("Ġ", "S"), ("i", "s")]
    vocab = {token: place for place, token in enumerate([*alphabet, *("".join(pair) for pair in merges)])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    names = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<pad>")
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    bos = names[0]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=bos, eos_token="<|eot_id|>", pad_token="<pad>"
    )
    tokenizer.chat_template = LLAMA_TEMPLATE
    return tokenizer


def sentencepiece_tokenizer(with_step_tag: bool = True) -> PreTrainedTokenizerFast:
    """Mistral's kind: a space before the text, bytes for unknown characters, `<s>` in front, and "▁ки", "▁+", "▁-"."""
    letters = [chr(code) for code in range(33, 127)]
    merges = [("▁", "+"), ("▁", "-"), ("▁", "S"), ("▁S", "t"), ("▁St", "e"), ("▁Ste", "p"), ("i", "s")]
    tag = [("к", "и"), ("▁", "ки")] if with_step_tag else []
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "к", "и", *letters]
    pieces += ["".join(pair) for pair in (*merges, *tag)]
    vocab = {piece: place for place, piece in enumerate(dict.fromkeys(pieces))}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[*merges, *tag], byte_fallback=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in ("<unk>", "<s>", "</s>")])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", vocab["<s>"])])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def shape_of(vocabulary: int, **changes: Any) -> dict[str, Any]:
    """Config values of two layers with heads of 32; wide random weights, so that tokens differ in their scores."""
    return {
        "vocab_size": vocabulary,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": CONTEXT,
        "initializer_range": 0.1,
        "tie_word_embeddings": False,
    } | changes


def save_reasonflux_small(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A causal Qwen2 with tied weights, and `reward_head.pt` beside it."""
    _save_qwen_lm(folder, byte_tokenizer(NEWLINE_MERGES), seed, tie_word_embeddings=True, **changes)
    torch.save(_linear(1).state_dict(), folder / "reward_head.pt")
    return folder


def save_skywork(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A causal Qwen2 whose file also holds `v_head.summary`; the architecture's name is nobody else's."""
    tokenizer = byte_tokenizer(NEWLINE_MERGES)
    tokenizer.bos_token = "<|endoftext|>"
    _save_qwen_lm(folder, tokenizer, seed, **changes)
    head = _linear(1)
    rewrite_tensors(folder, {"v_head.summary.weight": head.weight.detach(), "v_head.summary.bias": head.bias.detach()})
    rewrite_config(folder, architectures=["Qwen2ForPrmModel"])
    return folder


def save_pure(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """`Qwen2ForTokenClassification` with two labels."""
    tokenizer = byte_tokenizer(NEWLINE_MERGES)
    torch.manual_seed(seed)
    model = Qwen2ForTokenClassification(Qwen2Config(**shape_of(len(tokenizer), num_labels=2, **changes)))
    model.score.load_state_dict(_linear(2).state_dict())
    return _save(folder, model, tokenizer)


def save_math_shepherd(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A causal Mistral with a sentencepiece-like tokenizer."""
    tokenizer = sentencepiece_tokenizer()
    torch.manual_seed(seed)
    settings = shape_of(len(tokenizer), sliding_window=None, **changes)
    return _save(folder, _with_wide_head(MistralForCausalLM(MistralConfig(**settings))), tokenizer)


def save_rlhflow(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A causal Llama with a chat template."""
    tokenizer = llama3_tokenizer()
    torch.manual_seed(seed)
    return _save(
        folder, _with_wide_head(LlamaForCausalLM(LlamaConfig(**shape_of(len(tokenizer), **changes)))), tokenizer
    )


def save_implicit(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A causal Qwen2, and in the folder `reference` another one of the same shape."""
    _save_qwen_lm(folder / "reference", byte_tokenizer(NEWLINE_MERGES), seed + 1, **changes)
    return _save_qwen_lm(folder, byte_tokenizer(NEWLINE_MERGES), seed, **changes)


def save_process(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """`Qwen2ForProcessRewardModel`: the head is the one of ReasonFlux-PRM-7B and Qwen2.5-Math-PRM."""
    return save_tiny_prm(folder, seed, **changes)


FAMILIES: dict[str, Callable[..., Path]] = {
    "reasonflux_prm": save_process,
    "qwen_math_prm": save_process,
    "reasonflux_prm_1_5b": save_reasonflux_small,
    "skywork_prm": save_skywork,
    "pure_prm": save_pure,
    "math_shepherd": save_math_shepherd,
    "rlhflow_prm": save_rlhflow,
    "implicit_prm": save_implicit,
}


def save_family(adapter: str, folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Write a checkpoint of the family that `adapter` reads; `changes` go into config.json."""
    return FAMILIES[adapter](folder, seed, **changes)


def family_spec(family: str, folder: Path, /, **changes: Any) -> PRMSpec:
    """How to run it: float32 on the CPU, by the adapter of its name unless `changes` say another."""
    settings: dict[str, Any] = {"path": str(folder), "adapter": family, "dtype": "float32", "device": "cpu"}
    if family == "implicit_prm":
        settings |= {"reference_path": str(folder / "reference"), "implicit_beta": 0.5}
    return PRMSpec(**(settings | changes))


def rewrite_config(folder: Path, **changes: Any) -> None:
    """Change values of config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rewrite_tensors(folder: Path, changes: dict[str, torch.Tensor | None]) -> None:
    """Put tensors into model.safetensors, or take them out (None)."""
    tensors = load_file(folder / "model.safetensors") | changes
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})


def _save_qwen_lm(folder: Path, tokenizer: PreTrainedTokenizerFast, seed: int, **changes: Any) -> Path:
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(Qwen2Config(**shape_of(len(tokenizer), **changes)))
    return _save(folder, model if model.config.tie_word_embeddings else _with_wide_head(model), tokenizer)


def _with_wide_head(model: Any) -> Any:
    torch.nn.init.normal_(model.lm_head.weight, std=1.5 / model.config.hidden_size**0.5)
    return model


def _linear(outputs: int, inputs: int = 64) -> torch.nn.Linear:
    layer = torch.nn.Linear(inputs, outputs)
    torch.nn.init.normal_(layer.weight, std=1.5 / inputs**0.5)
    torch.nn.init.normal_(layer.bias, std=0.3)
    return layer


def _save(folder: Path, model: Any, tokenizer: PreTrainedTokenizerFast) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
