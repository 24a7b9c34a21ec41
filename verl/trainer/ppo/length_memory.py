# SPDX-License-Identifier: Apache-2.0
"""How long the responses to a prompt were so far, so that long ones can be started first. Knows no server."""

from __future__ import annotations

from collections.abc import Sequence

_NEWEST_SHARE = 0.5  # a prompt comes by once per epoch: few values, and the policy has changed meanwhile


class LengthMemory:
    """Moving averages of response lengths by prompt.

    A prompt is known by its tokens, so that neither names nor places of a batch matter. It lives in memory only: after
    a restart it fills again, and nothing but the order of submission depends on it.

    Example:
        >>> memory = LengthMemory()
        >>> memory.observe([5, 7], num_tokens=120.0)
        >>> memory.expected([5, 7])
        120.0
    """

    def __init__(self) -> None:
        """Start without any memory."""
        self._by_prompt: dict[int, float] = {}
        self._overall = 0.0

    def observe(self, prompt_token_ids: Sequence[int], num_tokens: float) -> None:
        """Remember a finished group.

        Args:
            prompt_token_ids: The prompt.
            num_tokens: Length of its longest response, which is what a rollout waits for. Unit: tokens.
        """
        key = hash(tuple(prompt_token_ids))
        self._by_prompt[key] = _moved(self._by_prompt.get(key, num_tokens), num_tokens)
        self._overall = _moved(self._overall or num_tokens, num_tokens)

    def expected(self, prompt_token_ids: Sequence[int], stated: float | None = None) -> float:
        """Expect a length.

        Args:
            prompt_token_ids: The prompt.
            stated: What the data say of it, if they do: that counts alone. Unit: tokens.

        Returns:
            What is stated, or the average of this prompt, or of all while it is new. Unit: tokens.
        """
        if stated is not None:
            return float(stated)
        return self._by_prompt.get(hash(tuple(prompt_token_ids)), self._overall)


def _moved(average: float, newest: float) -> float:
    return (1 - _NEWEST_SHARE) * average + _NEWEST_SHARE * newest
