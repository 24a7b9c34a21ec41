# SPDX-License-Identifier: Apache-2.0
"""Whole experiments, each with its own README and results."""
