# SPDX-License-Identifier: Apache-2.0
"""What test_slurm.py lets `train.sbatch` run in place of a training: says which Ray nodes it finds, as one JSON line.

With `end=CODE` it exits with that code, with `end=never` it waits to be cancelled.
"""

from __future__ import annotations

import json
import os
import sys
import time

import ray


@ray.remote(num_cpus=1, scheduling_strategy="SPREAD")
def say_where() -> tuple[str, str | None]:
    """Name the Ray node and the Slurm node this runs on, slowly enough that two calls need two places."""
    time.sleep(2)
    return ray.get_runtime_context().get_node_id(), os.environ.get("SLURMD_NODENAME")


def main() -> int:
    """Print what the cluster looks like.

    Returns:
        The exit code asked for.
    """
    ray.init(address="auto", log_to_driver=False)
    alive = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    places = ray.get([say_where.remote() for _ in alive], timeout=120)
    sys.stdout.write("REPORT " + json.dumps({"alive": alive, "places": places, "arguments": sys.argv[1:]}) + "\n")
    sys.stdout.flush()
    end = dict(argument.split("=", 1) for argument in sys.argv[1:] if "=" in argument).get("end", "0")
    if end == "never":
        time.sleep(600)
    return int(end)


if __name__ == "__main__":
    sys.exit(main())
