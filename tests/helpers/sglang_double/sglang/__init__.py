# SPDX-License-Identifier: Apache-2.0
"""Looks like the SGLang package to whoever starts `python -m sglang.launch_server`; see `launch_server`."""
