# SPDX-License-Identifier: Apache-2.0
"""What the programs beside this folder share: files, columns, the PRM, the journal of a run, charts."""
