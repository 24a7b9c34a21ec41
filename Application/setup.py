# SPDX-License-Identifier: Apache-2.0
"""Installs the package that lies one folder above, so that `pip install --no-deps -e .` also works from in here."""

from __future__ import annotations

import runpy
from pathlib import Path

from setuptools import setup

if __name__ == "__main__":
    above = Path(__file__).resolve().parent.parent
    setup(**runpy.run_path(str(above / "setup.py"))["settings"](package_root=".."))
