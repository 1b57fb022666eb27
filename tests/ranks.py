"""Run ranks as plain processes over gloo, without Ray."""

import multiprocessing
import os
import socket
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import torch.multiprocessing as mp

IMPORTED = ["deepspeed", "peft", "transformers.integrations.deepspeed", "rayfuse.training.build_trainer"]
"""Modules that the fork server imports once for all ranks, as imports take longer than the tests."""


def spawn(work: Callable[..., None], world: int, *arguments: Any) -> None:
    """Call `work(rank, world, *arguments)` in `world` processes of one process group, with one thread each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    os.environ.setdefault(
        "DS_ACCELERATOR", "cpu"
    )  # read at the first import of deepspeed, which is before `work`
    multiprocessing.set_forkserver_preload(IMPORTED)
    mp.start_processes(_join, (work, world, port, arguments), nprocs=world, start_method="forkserver")


def _join(rank: int, work: Callable[..., None], world: int, port: int, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo")
    with tempfile.TemporaryDirectory(
        prefix="rayfuse-rank-"
    ) as scratch:  # these processes do not run exit handlers
        tempfile.tempdir = scratch
        work(rank, world, *arguments)
    torch.distributed.destroy_process_group()
