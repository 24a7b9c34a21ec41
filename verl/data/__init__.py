# SPDX-License-Identifier: Apache-2.0
"""Rows of parquet and JSONL files as prompts, demonstrations and labelled solutions."""
