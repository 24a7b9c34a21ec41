# SPDX-License-Identifier: Apache-2.0
"""The part of the single controller that needs no Ray."""
