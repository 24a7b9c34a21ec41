# SPDX-License-Identifier: Apache-2.0
"""Stands in for torchvision, whose builds for a GPU fail beside a torch for the CPU; see `refusing`."""

from refusing import refuse

__version__ = "0.28.0"
__getattr__ = refuse(__name__)
