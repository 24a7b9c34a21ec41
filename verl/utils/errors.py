# SPDX-License-Identifier: Apache-2.0
"""The one error type that is meant for the user: a wrong key, file or value, with the way to mend it."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake in the user's input. Entry points show its text alone (no traceback) and exit with code 2."""

    @classmethod
    def for_key(cls, key: str, value: object, allowed: str, mend: str) -> UserError:
        """Build the standard message.

        Args:
            key: Full configuration key or argument name, e.g. `data.train_files`.
            value: The value found.
            allowed: What would be accepted, in words.
            mend: What the user should do, as an imperative clause.

        Returns:
            The error, ready to be raised.
        """
        return cls(f"{key}={value!r}: {allowed}. {mend}.")
