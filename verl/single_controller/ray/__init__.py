# SPDX-License-Identifier: Apache-2.0
"""The single controller on Ray."""
