# SPDX-License-Identifier: Apache-2.0
"""Trainable models on a mesh of ranks, behind one set of verbs. This room knows no Ray, no DataProto and no rewards."""
