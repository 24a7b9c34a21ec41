# SPDX-License-Identifier: Apache-2.0
"""Tensor, pipeline and sequence parallelism with Megatron-core, without Transformer Engine."""
