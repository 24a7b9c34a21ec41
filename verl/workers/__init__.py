# SPDX-License-Identifier: Apache-2.0
"""Thin Ray actors: decode, delegate to an engine, encode. They do not know the order of a training step."""
