"""Runs a benchmark into a folder: its results, whatever ends it, and the report on them."""

import logging
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch

from longlive.benchmark.config import BenchmarkConfig
from longlive.benchmark.definitions import DEFINITIONS
from longlive.benchmark.results import Results
from longlive.benchmark.session import Origin, Session
from longlive.errors import UserError
from longlive.modules.longlive import LongLive
from longlive.video.atomic import cannot_write

log = logging.getLogger(__name__)

TRACE_NAME = "trace.json"
TERMINATED = 128 + signal.SIGTERM
"""What a shell reports for a program that SIGTERM ended."""


class Terminated(BaseException):
    """SIGTERM came."""


def run_benchmark(
    model: LongLive,
    callbacks: Iterable[pl.Callback],
    config: BenchmarkConfig,
    *,
    device: torch.device,
    output: Path,
    overwrite: bool = False,
    origin: Origin | None = None,
) -> Results:
    """Measure a recipe, and write results, trace and report into a folder.

    The results are written after every rollout, so that they are there whatever happens.

    Args:
        model: Not yet on its device.
        callbacks: As configured; those that only watch are left out.
        config: What to run.
        device: Where.
        output: Folder; made if need be.
        overwrite: Whether it may hold files already; those of the same names are replaced.
        origin: Where the recipe came from.

    Raises:
        UserError: If the configuration or the folder cannot work; nothing has been measured then.
        SystemExit: After SIGTERM. What was measured is in the folder, marked as incomplete, as
            after every exception.
    """
    session = Session(model, callbacks, config, device, origin)
    prepare_folder(output, overwrite=overwrite)
    try:
        with terminated_by_signal(), _said_once():
            session.run(lambda: _checkpoint(session, output))
    except BaseException as error:
        _keep(session, output, error)
        if isinstance(error, Terminated):
            raise SystemExit(TERMINATED) from error
        raise
    results = _save(session, output)
    if session.profiled is not None:
        session.profiled.regions.write_trace(output / TRACE_NAME)
    write_report(output)
    return results


def prepare_folder(folder: Path, *, overwrite: bool) -> None:
    """Make a folder for results, or check the one that is there.

    Raises:
        UserError: If it is a file, has files already, or cannot be made.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: name a folder for the results")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        is_taken = any(folder.iterdir())
    except OSError as error:
        raise cannot_write(folder, error) from error
    if is_taken and not overwrite:
        raise UserError(f"{folder} is not empty: name another folder, or add --overwrite")


def write_report(folder: Path) -> None:
    """Write the report on the results in a folder.

    Raises:
        UserError: If it cannot be written.
    """
    # Draws plots, which takes a library that measuring does not need.
    from longlive.benchmark.report import write_report as write

    write(folder)


def summary(results: Results, folder: Path) -> dict[str, Any]:
    """What the last line of ``longlive benchmark`` says, ready for JSON."""
    return {
        "results": str(folder),
        "complete": results.complete,
        "recipe": results.recipe.name,
        "weights": results.recipe.weights_kind,
        "device": results.environment.device_name,
        "commit": results.commit,
        "figures": {name: figure.value for name, figure in results.figures.items()},
    }


def table(results: Results) -> Iterator[str]:
    """Lines for people: every figure with its unit."""
    width = max(len(definition.title) for definition in DEFINITIONS.values())
    group = ""
    for name, figure in results.figures.items():
        definition = DEFINITIONS[name]
        if definition.group != group:
            group = definition.group
            yield f"{group}:"
        value = figure.reason if figure.value is None else _readable(figure.value, figure.unit)
        yield f"  {definition.title:{width}}  {value}"


@contextmanager
def terminated_by_signal() -> Iterator[None]:
    """Raise ``Terminated`` when SIGTERM comes, where the system lets us."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signum: int, frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _said_once() -> Iterator[None]:
    """Hold back what every rollout says anew; the results say it."""
    chatty = logging.getLogger("longlive.attention")
    level = chatty.level
    chatty.setLevel(logging.WARNING)
    try:
        yield
    finally:
        chatty.setLevel(level)


def _save(session: Session, folder: Path, ended: str = "complete") -> Results:
    results = session.results(ended)
    results.save(folder)
    return results


def _checkpoint(session: Session, folder: Path) -> None:
    _save(session, folder, "still running, or killed")


def _keep(session: Session, folder: Path, error: BaseException) -> None:
    """Keep what an unfinished benchmark has."""
    words: Mapping[type[BaseException], str] = {
        KeyboardInterrupt: "interrupted",
        Terminated: "terminated",
    }
    ended = words.get(type(error), f"failed: {type(error).__name__}: {error}")
    try:
        _save(session, folder, " ".join(ended.split()))
        log.warning(
            "%s; what was measured is in %s, marked as incomplete: longlive benchmark report %s",
            *(ended, folder, folder),
        )
    # Another error is on its way.
    except (UserError, RuntimeError) as also:
        log.warning("%s", also)


def _readable(value: float, unit: str) -> str:
    if unit == "bytes":
        return f"{value / 2**30:.2f} GiB"
    digits = 3 if unit in ("ratio", "s") else 2
    return f"{value:.{digits}f} {unit}"
