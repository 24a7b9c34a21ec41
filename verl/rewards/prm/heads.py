# SPDX-License-Identifier: Apache-2.0
"""The heads of all PRM families: hidden states in, logits (wrong, right) out, always in float32.

A head reads its own tensors and nothing else of a checkpoint, so whoever serves the backbone can load it beside. It
knows no tokens but the two whose rows of the language model's head are a family's verdict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from verl.rewards.prm.files import PATH_KEY, REWARD_HEAD_FILE, Shapes, read_json
from verl.rewards.prm.weights import lm_head_name, load_pickled, read_tensors, weight_names
from verl.utils.errors import UserError

HeadKind = Literal["process", "value", "reward_file", "labels", "token_pair", "log_ratio"]


@dataclass(frozen=True)
class HeadSpec:
    """Which head a family has.

    Args:
        kind: `process` Linear, ReLU, Linear to 2 classes (`score.0`, `score.2`); `labels` Linear to 2 classes
            (`score`); `value` Linear to 1 (`v_head.summary`); `reward_file` Linear to 1 (`reward_head.pt`);
            `token_pair` two rows of the language model's head; `log_ratio` none: two language models are compared.
        token_ids: Of `token_pair`, the tokens that mean (wrong, right).
    """

    kind: HeadKind
    token_ids: tuple[int, int] | None = None


class StepHead(nn.Module):
    """Float32 layers from hidden states to two logits; where they give one number v, the logits are (0, v)."""

    def __init__(self, layers: nn.Module) -> None:
        """Keep the layers.

        Args:
            layers: Maps [..., h] to [..., 2] or [..., 1].
        """
        super().__init__()
        self.layers = layers.float()

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Judge tokens.

        Args:
            hidden: [..., h] the backbone's last hidden states (behind its final norm), any dtype.

        Returns:
            [..., 2] float32 logits (wrong, right): softmax of them is the published score, sigmoid(v) for one number.
        """
        out: torch.Tensor = self.layers(hidden.float())
        return torch.cat([torch.zeros_like(out), out], dim=-1) if out.shape[-1] == 1 else out


def load_head(folder: str | Path, head: HeadSpec) -> StepHead:
    """Load a head from its own tensors.

    Args:
        folder: The PRM's folder.
        head: Which head; `load_adapter(spec).head` says it.

    Returns:
        The head in evaluation mode, float32, on the CPU.

    Raises:
        UserError: Its tensors are missing or of another shape.
        ValueError: The family has no head (`log_ratio`).
    """
    folder = Path(folder)
    config = read_json(folder / "config.json", str(folder))
    width = int(config.get("hidden_size") or 0)
    if head.kind == "log_ratio":
        raise ValueError("an implicit PRM has no head: it compares two language models")
    if head.kind == "token_pair":
        layers: nn.Module = _token_pair(folder, head, config)
    elif head.kind == "reward_file":
        layers = _linear(_reward_file(folder, width))
    else:
        names = tuple(wanted_shapes(head.kind, width))
        tensors = read_tensors(folder, names)
        check_shapes({name: tuple(tensor.shape) for name, tensor in tensors.items()}, head, config, str(folder))
        linears = [
            _linear({"weight": tensors[w], "bias": tensors[b]}) for w, b in zip(names[::2], names[1::2], strict=True)
        ]
        layers = nn.Sequential(linears[0], nn.ReLU(), linears[1]) if head.kind == "process" else linears[0]
    return StepHead(layers).eval().requires_grad_(False)


def wanted_shapes(kind: HeadKind, width: int) -> Shapes:
    """Say which tensors a head is made of.

    Args:
        kind: See `HeadSpec`.
        width: Width of the backbone.

    Returns:
        Shapes by name; empty for heads that are no tensors of their own in the checkpoint.
    """
    if kind == "process":
        return {
            "score.0.weight": (width, width),
            "score.0.bias": (width,),
            "score.2.weight": (2, width),
            "score.2.bias": (2,),
        }
    if kind == "value":
        return {"v_head.summary.weight": (1, width), "v_head.summary.bias": (1,)}
    if kind == "labels":
        return {"score.weight": (2, width), "score.bias": (2,)}
    return {}


def check_shapes(
    shapes: Mapping[str, Sequence[int]], head: HeadSpec, config: Mapping[str, Any], path: str, key: str = PATH_KEY
) -> None:
    """Check that a checkpoint holds the tensors of a head.

    Args:
        shapes: Tensor shapes by name, of the whole checkpoint or of its head.
        head: The head it should have.
        config: Its config.json.
        path: For the message.
        key: Configuration key that `path` came from.

    Raises:
        UserError: One is missing or has another shape.
    """
    width = int(config.get("hidden_size") or 0)
    wanted = wanted_shapes(head.kind, width)
    if head.kind in ("token_pair", "log_ratio"):
        name = lm_head_name(shapes, config)
        rows = max(head.token_ids or (0,)) + 1
        wanted = {name: (max(rows, *tuple(shapes.get(name, ()))[:1], 0), width)}
    for name, shape in wanted.items():
        found = shapes.get(name)
        if found is None or tuple(found) != shape:
            raise _wrong_head(head, name, shape, found, (key, path))


def _wrong_head(
    head: HeadSpec, name: str, shape: Sequence[int], found: Sequence[int] | None, where: tuple[str, str]
) -> UserError:
    what = "is missing" if found is None else f"has shape {list(found)}"
    is_language_model = head.kind in ("token_pair", "log_ratio")
    needed = "the head of a language model" if is_language_model else "a process reward head"
    mend = "a whole language model" if is_language_model else "a PRM, not of a policy or another reward model"
    return UserError.for_key(
        *where,
        f"must hold {needed}, {name} of shape {list(shape)}, but it {what}",
        f"Name the folder of {mend}, or the adapter of its family (reward_model.process_reward.adapter)",
    )


def _token_pair(folder: Path, head: HeadSpec, config: Mapping[str, Any]) -> nn.Linear:
    if head.token_ids is None:
        raise ValueError("a head of two tokens needs their ids")
    name = lm_head_name(weight_names(folder), config)
    rows = read_tensors(folder, [name], rows=head.token_ids)[name]
    check_shapes({name: (max(head.token_ids) + 1, *rows.shape[1:])}, head, config, str(folder))
    return _linear({"weight": rows})


def _reward_file(folder: Path, width: int) -> dict[str, torch.Tensor]:
    """Read weight [1, h] and bias [1] of `reward_head.pt`, whatever stands before their names."""
    path = folder / REWARD_HEAD_FILE
    if not path.is_file():
        raise UserError.for_key(PATH_KEY, str(folder), f"must hold {REWARD_HEAD_FILE}", "Download the model again")
    state = load_pickled(path)
    found = {name.rpartition(".")[2]: tensor for name, tensor in state.items()}
    shapes = {name: tuple(getattr(tensor, "shape", ())) for name, tensor in found.items()}
    if shapes != {"weight": (1, width), "bias": (1,)}:
        raise UserError.for_key(
            PATH_KEY,
            str(path),
            f"must hold weight [1, {width}] and bias [1], but holds {shapes}",
            "Use the head that the backbone came with",
        )
    return found


def _linear(tensors: Mapping[str, torch.Tensor]) -> nn.Linear:
    outputs, inputs = tensors["weight"].shape
    # Named, because vLLM builds models with its own dtype and device as torch's defaults: a head must not be rounded.
    layer = nn.Linear(inputs, outputs, bias="bias" in tensors, device="cpu", dtype=torch.float32)
    layer.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return layer
