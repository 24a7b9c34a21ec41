# SPDX-License-Identifier: Apache-2.0
"""Process reward models: how reasoning steps are found, shown to a PRM, scored and checked. Loads nothing by itself."""
