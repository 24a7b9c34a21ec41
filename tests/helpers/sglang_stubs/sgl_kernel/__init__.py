# SPDX-License-Identifier: Apache-2.0
"""Stands in for SGLang's compiled kernels on a machine without a GPU; see `refusing`."""

from refusing import refuse

__version__ = "0.4.10"
__getattr__ = refuse(__name__)
