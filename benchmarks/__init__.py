# SPDX-License-Identifier: Apache-2.0
"""Measured claims: each script puts ours beside what it is compared with, in one run on one machine."""
