# SPDX-License-Identifier: Apache-2.0
"""The mathematics of training as pure functions of tensors. No batch type, no Ray and no config tree in here."""
