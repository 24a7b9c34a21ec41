# SPDX-License-Identifier: Apache-2.0
"""The one home of reward: rule scorers, process scores, credit assignment. Empty, so that workers start light."""
