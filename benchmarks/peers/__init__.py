# SPDX-License-Identifier: Apache-2.0
"""Programs of other projects' libraries that ours is measured beside; each runs in an environment of its own."""
