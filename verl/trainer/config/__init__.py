# SPDX-License-Identifier: Apache-2.0
"""The shipped YAML files, made from `verl.config`: every key with its default. A package, so they are installed."""
