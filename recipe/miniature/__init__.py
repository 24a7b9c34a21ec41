# SPDX-License-Identifier: Apache-2.0
"""The whole story at a size that trains on two CPU cores: data from a script, a tiny policy and a tiny PRM."""
