# SPDX-License-Identifier: Apache-2.0
"""Rollout engines: prompts in, sampled responses with log-probs out. They do not know what the responses are for."""
