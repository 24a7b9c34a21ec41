# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest

from verl.config.model_shape import ModelShape, read_shape

# Qwen2.5-7B: its card says 7.61e9 parameters, 6.53e9 without embeddings.
QWEN_7B = {
    "hidden_size": 3584,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "intermediate_size": 18944,
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
}


def write_config(folder: Path, **changes: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**QWEN_7B, **changes}))
    return folder


def shape_of(path: object, **changes: object) -> ModelShape:
    shape, why = read_shape(str(path), changes)
    assert shape is not None, why
    return shape


def test_parameters_of_a_known_model(tmp_path: Path) -> None:
    shape = shape_of(write_config(tmp_path))
    assert shape.num_params == pytest.approx(7.61e9, rel=0.002)
    assert shape.layers * shape.layer_params == pytest.approx(6.53e9, rel=0.002)
    # 2 (keys, values) x 28 layers x 4 heads x 128 wide x 2 bytes
    assert shape.kv_bytes_per_token(2) == 57344
    assert shape.max_positions == 32768


def test_tied_embeddings_count_once(tmp_path: Path) -> None:
    tied = shape_of(write_config(tmp_path / "tied", tie_word_embeddings=True))
    assert shape_of(write_config(tmp_path)).num_params - tied.num_params == 152064 * 3584


def test_older_configs_without_grouped_queries(tmp_path: Path) -> None:
    assert shape_of(write_config(tmp_path, num_key_value_heads=None)).kv_heads == 28


def test_overrides_of_the_user_count(tmp_path: Path) -> None:
    assert shape_of(write_config(tmp_path), max_position_embeddings=99).max_positions == 99
    assert shape_of(write_config(tmp_path), rope_scaling={"rope_type": "yarn"}).max_positions is None


def test_hub_models_are_found_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert read_shape("org/name") == (None, "config.json of 'org/name' is not on this machine")
    write_config(tmp_path / "models--org--name" / "snapshots" / "abc")
    assert shape_of("org/name").hidden == 3584


@pytest.mark.parametrize(
    ("text", "said"), [("{", "cannot be read"), ("[]", "not a JSON object"), ("{}", "no number for")]
)
def test_unreadable_configs_say_why(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "config.json").write_text(text)
    shape, why = read_shape(str(tmp_path))
    assert shape is None
    assert said in why
