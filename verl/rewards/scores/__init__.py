# SPDX-License-Identifier: Apache-2.0
"""Rule scorers, one per file, each a pure function of (response, truth). Nothing is loaded here."""
