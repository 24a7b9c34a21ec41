# SPDX-License-Identifier: Apache-2.0
"""Importing this lets Megatron-core run on the CPU for the rest of the process: `model.external_lib` of a Ray worker.

The product imports nothing of it; a test names it in its configuration. It refuses to work where there is a GPU.
"""

from __future__ import annotations

from tests.helpers.megatron_cpu import megatron_on_cpu

ENTERED = megatron_on_cpu()
ENTERED.__enter__()
