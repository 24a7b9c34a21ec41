# SPDX-License-Identifier: Apache-2.0
"""One controller, many workers: declared dispatch over a group of ranks. Knows no model and no training."""

from verl.single_controller.base.decorator import DataShare, Dispatch, register
from verl.single_controller.base.worker import Worker, WorkerPlace
from verl.single_controller.ray.resource_pool import ResourcePool, check_cluster
from verl.single_controller.ray.worker_group import RayWorkerGroup, WorkerSpec

__all__ = [
    "DataShare",
    "Dispatch",
    "RayWorkerGroup",
    "ResourcePool",
    "Worker",
    "WorkerPlace",
    "WorkerSpec",
    "check_cluster",
    "register",
]
