# SPDX-License-Identifier: Apache-2.0
"""Moves named weights from the trainer to the rollout engines.

Works on streams of `(name, tensor)` pairs alone: it knows no model, no trainer and no Ray. The backends are

* `shared_memory`: one file in the node's shared memory, mapped by the engine (CPU, colocated);
* `ipc`: CUDA IPC handles (GPU, colocated), vLLM's own transfer engine on both sides.
"""
