# SPDX-License-Identifier: Apache-2.0
"""Fully sharded data parallelism with torch FSDP2."""
