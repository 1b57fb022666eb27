"""What a worker's process takes before it has a model: python -m rayfuse.train.plan.baseline prints it in bytes.

It imports what a worker imports and trains next to nothing, so that threads, gloo and the kernels' own buffers are
there too. Ray's own part of a worker's process is imported, but not connected.
"""

import os
import subprocess
import sys

from rayfuse.errors import ResourceError


def measure() -> int:
    """Bytes, from a fresh process; it takes some seconds. Raises ResourceError where that fails."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-m", __name__], env=environment, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it was killed"])[-1]
        raise ResourceError(f"a worker's process cannot be started here to see what it takes: {reason}")
    return int(done.stdout.split()[-1])


def _train_nothing() -> int:
    os.environ |= {"DS_ACCELERATOR": "cpu", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    import ray.train
    import ray.train.torch  # noqa: F401
    import torch

    import rayfuse.train.entry  # noqa: F401
    from rayfuse.train.memory import load_libraries, resident

    load_libraries()
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
    return resident()


if __name__ == "__main__":
    sys.stdout.write(f"{_train_nothing()}\n")
