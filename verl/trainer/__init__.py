# SPDX-License-Identifier: Apache-2.0
"""Entry points and the training loop; everything below is called from here and knows nothing of it."""
