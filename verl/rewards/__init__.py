# SPDX-License-Identifier: Apache-2.0
"""The one home of reward: rule scorers, process scores, credit assignment. Kept empty so that scorer workers start light."""
