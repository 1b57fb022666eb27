"""Process groups of workers that are all on this machine: they listen on loopback only.

The TCPStore of Ray Train's own process groups listens on all interfaces, gloo and NCCL on that of the host's name.
"""

import os
import shutil
import tempfile
from dataclasses import dataclass
from typing import Any

import psutil
import ray
from ray.train.torch import TorchConfig

from rayfuse.ray_patches import is_on_loopback, require
from rayfuse.temp_dirs import socket_base_dir

_LOOPBACK = "127.0.0.1"
_PREFIX = "rayfuse-group-"
_ray_torch = require("ray.train.torch.config")


def build_torch_config(backend: str) -> TorchConfig:
    """Return Ray Train's configuration of a process group, for the Ray that this process is connected to."""
    if not is_on_loopback():
        return TorchConfig(backend=backend)
    return LoopbackTorchConfig(backend, folder=tempfile.mkdtemp(prefix=_PREFIX, dir=socket_base_dir(0)))


def remove_files(config: TorchConfig) -> None:
    """Remove the files of the process groups of a run that has ended."""
    if isinstance(config, LoopbackTorchConfig):
        shutil.rmtree(config.folder, ignore_errors=True)


@dataclass
class LoopbackTorchConfig(TorchConfig):
    """Configuration of a process group that listens on loopback only."""

    folder: str = ""
    """Folder of the files that connect the workers; its path needs no encoding in a URL."""

    @property
    def backend_cls(self) -> Any:
        """Class that Ray Train sets up the process group with."""
        return _LoopbackBackend


class _LoopbackBackend(_ray_torch._TorchBackend):  # type: ignore[name-defined]
    """Connects the workers by a file instead of a TCPStore. The controller and the workers are on one machine."""

    def on_start(self, worker_group: Any, backend_config: LoopbackTorchConfig) -> None:
        descriptor, store = tempfile.mkstemp(dir=backend_config.folder)
        os.close(descriptor)
        worker_group.execute(_use_loopback)
        worker_group.execute(_ray_torch._set_torch_distributed_env_vars)
        arguments = {"backend": backend_config.backend, "timeout_s": backend_config.timeout_s}
        started = [
            worker_group.execute_single_async(
                rank,
                _ray_torch._setup_torch_process_group,
                world_rank=rank,
                world_size=len(worker_group),
                init_method=f"file://{store}",  # PyTorch does not decode URLs
                **arguments,
            )
            for rank in range(len(worker_group))
        ]
        ray.get(started)


def _use_loopback() -> None:
    """Set the environment variables of this worker; DeepSpeed requires an address, which nothing connects to."""
    os.environ.update(MASTER_ADDR=_LOOPBACK, MASTER_PORT="0")
    interfaces = psutil.net_if_addrs().items()
    names = [name for name, given in interfaces if any(one.address == _LOOPBACK for one in given)]
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if names else ():
        os.environ.setdefault(variable, names[0])
