"""Processes that talk to each other over gloo, as those of several devices do.

A process that imports Lightning takes seconds to start. These are forked from one that has imported
it, once for all tests of a session, and so take hundredths of a second.
"""

import os
import socket
import sys
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing

FORKING = "forkserver"
get_context(FORKING).set_forkserver_preload(["lightning.pytorch.cli", "torchmetrics"])

Work = Callable[[int, Path], Any]


class Ended(NamedTuple):
    """A command that has ended.

    Attributes:
        code: What it exits with.
        errors: What it wrote on stderr.
    """

    code: int
    errors: str


def run_processes(work: Work, folder: Path, count: int = 2, backend: str = "gloo") -> list[Any]:
    """Run ``work(rank, folder)`` in processes of one group; what each returns, in order.

    Args:
        work: A function of a module, so that other processes find it.
        folder: For what they return.
        count: How many.
        backend: Of their group.
    """
    arguments = (work, folder, count, backend, free_port())
    torch.multiprocessing.start_processes(_begin, arguments, count, start_method=FORKING)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(count)]


def run_commands(
    words: Sequence[str], folder: Path, count: int = 1, prepare: Callable[[], None] | None = None
) -> list[Ended]:
    """Run ``longlive WORDS`` in a folder, in as many processes as ``torchrun`` would; in order.

    Args:
        words: The command and its options.
        folder: Where it runs.
        count: How many processes; one is alone, and not a group of one.
        prepare: A function of a module that is called before, in each.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    context = get_context(FORKING)
    running = [
        context.Process(target=_command, args=(rank, words, folder, count, port, prepare))
        for rank in range(count)
    ]
    for one in running:
        one.start()
    ended = []
    for rank, one in enumerate(running):
        one.join(timeout=240)
        if one.exitcode is None:
            one.kill()
            one.join()
        ended.append(Ended(one.exitcode, _errors(folder, rank).read_text()))
    return ended


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


def _command(
    rank: int,
    words: Sequence[str],
    folder: Path,
    count: int,
    port: int,
    prepare: Callable[[], None] | None,
) -> None:
    with _errors(folder, rank).open("w") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
    os.chdir(folder)
    torch.set_num_threads(1)
    if count > 1:
        os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "MASTER_ADDR": "127.0.0.1"}
        os.environ |= {"MASTER_PORT": str(port), "LOCAL_RANK": str(rank)}
    from longlive.cli import main

    if prepare is not None:
        prepare()
    sys.exit(main(words))


def _errors(folder: Path, rank: int) -> Path:
    return folder / f"stderr-{rank}.txt"
