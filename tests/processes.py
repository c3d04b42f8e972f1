"""Processes that talk to each other over gloo, as those of several devices do."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

Work = Callable[[int, Path], Any]


def run_processes(work: Work, folder: Path, count: int = 2, backend: str = "gloo") -> list[Any]:
    """Run ``work(rank, folder)`` in processes of one group; what each returns, in order.

    Args:
        work: A function of a module, so that other processes find it.
        folder: For what they return.
        count: How many.
        backend: Of their group.
    """
    torch.multiprocessing.spawn(_begin, (work, folder, count, backend, free_port()), count)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(count)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _begin(rank: int, work: Work, folder: Path, count: int, backend: str, port: int) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group(backend, init_method=address, rank=rank, world_size=count)
    torch.save(work(rank, folder), folder / f"{rank}.pt")
    dist.destroy_process_group()
