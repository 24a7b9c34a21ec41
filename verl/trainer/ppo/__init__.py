# SPDX-License-Identifier: Apache-2.0
"""The GRPO training loop and its parts."""
