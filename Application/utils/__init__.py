# SPDX-License-Identifier: Apache-2.0
"""Helpers under the names that the snippets published with ReasonFlux-PRM import."""
