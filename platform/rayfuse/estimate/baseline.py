"""Memory of a worker's process without a model. `python -m rayfuse.estimate.baseline [LIBRARY …]` prints it in bytes.

The process imports what a worker imports and trains a tiny model, so that the memory of threads, gloo and kernels counts.
Ray is imported, but not connected.
"""

import os
import subprocess
import sys
from collections.abc import Sequence

from rayfuse.errors import ResourceError


def measure(libraries: Sequence[str] = ()) -> int:
    """Return the bytes of a new process, which takes some seconds, with the libraries of `memory.job_libraries`.

    Raises ResourceError if it fails.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", __name__, *libraries]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["killed"])[-1]
        raise ResourceError(
            f"the memory of a worker's process cannot be measured: {reason}; check it with `python -m {__name__}`"
        )
    return int(done.stdout.split()[-1])


def _run_dummy_training(libraries: Sequence[str]) -> int:
    os.environ |= {"DS_ACCELERATOR": "cpu", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    import ray.train
    import ray.train.torch  # noqa: F401
    import torch

    import rayfuse.training.worker  # noqa: F401
    from rayfuse.training.memory import preload_libraries, release_free_memory, resident_bytes

    preload_libraries(libraries)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    import deepspeed
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    model = torch.nn.Linear(8, 8)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters()),
        config={"train_micro_batch_size_per_gpu": 1},
        dist_init_required=False,
    )
    engine.backward(engine(torch.ones(8, 8)).sum())
    engine.step()
    release_free_memory()
    return resident_bytes()


if __name__ == "__main__":
    sys.stdout.write(f"{_run_dummy_training(sys.argv[1:])}\n")
