# SPDX-License-Identifier: Apache-2.0
"""The shipped YAML files: every key with its default, made from `verl.config`. A package, so that they are installed."""
