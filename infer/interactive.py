r"""Type prompts while the video grows.

    python infer/interactive.py --prompt "a large red circle bounces over night" --output clip.mp4

In a terminal each line becomes the prompt from the next block on; ``:q``, Ctrl-D or Ctrl-C end the
video after the block at hand. From a pipe lines are prompts, each with its time or five seconds on:

    printf 'a red circle\n@4 a blue square\n' | python infer/interactive.py --seconds 8
"""

import argparse
import logging
import re
import signal
import sys
import threading
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml

from longlive.attention.rope import MAX_ABSOLUTE_LATENT_FRAMES
from longlive.callbacks.frame_writer import FrameWriter
from longlive.callbacks.progress import RolloutProgress
from longlive.errors import UserError
from longlive.geometry import FPS, frames_of, latent_frames_for_seconds
from longlive.modules.longlive import LongLive
from longlive.rollout.hooks import RolloutCallback
from longlive.rollout.prompts import PromptTimeline
from longlive.rollout.state import RolloutState
from longlive.rollout.stream import RolloutStream
from longlive.weights.embedded import CONFIG_FILE, student_names

CONFIGS = Path(__file__).parents[1] / "configs"
PROMPT_SECONDS = 5.0
QUIT = ":q"


class PromptAnnouncer(RolloutCallback):
    """Says where in the video a prompt takes effect."""

    def on_prompt_switch(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, state: RolloutState
    ) -> None:
        print(f"block {state.block_index}, {seconds_made(state)}: {state.prompt}", flush=True)


def seconds_made(state: RolloutState) -> str:
    return f"{frames_of(state.block_start) / FPS:.1f} s"


def read_script(lines: Iterable[str]) -> list[tuple[float, str]]:
    """Seconds and prompt of each line; a prompt without a time comes five seconds after the last.

    Raises:
        UserError: If there is no prompt for the start, or two are less than a second apart.
    """
    script: list[tuple[float, str]] = []
    for line in filter(None, map(str.strip, lines)):
        timed = re.fullmatch(r"@(\d+(?:\.\d+)?)\s+([^@\s].*)", line)
        if line.startswith("@") and not timed:
            raise UserError(f"{line!r} is not @SECONDS and a prompt")
        last = script[-1][0] if script else -PROMPT_SECONDS
        seconds = float(timed[1]) if timed else last + PROMPT_SECONDS
        if seconds < last + 1:
            raise UserError(f"{line!r} must come a second or more after the prompt at @{last:g}")
        script.append((seconds, timed[2] if timed else line))
    if not script or script[0][0] > 0:
        raise UserError("there is nothing to show at the start: give --prompt, or a first line")
    return script


def settings_for(weights: str) -> dict[str, Any]:
    """Arguments of the model, from the configuration that belongs to the weights."""
    is_small = weights == "embedded" or (Path(weights) / CONFIG_FILE).is_file()
    if weights == "synthetic":
        is_small = not torch.cuda.is_available()
    settings = arguments_in("tiny.yaml" if is_small else "base.yaml")
    folder = None if weights == "embedded" else weights
    if is_small and (weights == "synthetic" or settings["student"] not in student_names(folder)):
        settings |= arguments_in("student/teacher.yaml")
    return {**settings, "weights": weights}


def arguments_in(name: str) -> dict[str, Any]:
    """Arguments of the model in a configuration."""
    return dict(yaml.safe_load((CONFIGS / name).read_text())["model"]["init_args"])


def listen(lines: Iterable[str], stream: RolloutStream) -> None:
    """Turn typed lines into prompts until there are no more, then end the video."""
    try:
        for line in map(str.strip, lines):
            if line == QUIT:
                break
            if line:
                stream.change_prompt(line)
            else:
                print(f"{seconds_made(stream.state)} so far; type a prompt, or {QUIT} to end")
    finally:
        stream.stop()


def end_on_ctrl_c(stream: RolloutStream) -> None:
    """Let the first Ctrl-C end the video after the block at hand, and a second one at once."""

    def stop(*_: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stream.stop()

    signal.signal(signal.SIGINT, stop)


def run(args: argparse.Namespace) -> None:
    model = LongLive(**settings_for(args.weights))
    block = model.block_latent_frames
    is_typed = sys.stdin.isatty()
    first = [args.prompt] if args.prompt else [input("prompt: ")] if is_typed else []
    script = read_script(first if is_typed else [*first, *sys.stdin])
    default = None if is_typed else script[-1][0] + PROMPT_SECONDS
    seconds = default if args.seconds is None else args.seconds
    length = None if seconds is None else latent_frames_for_seconds(seconds, block)
    starts = [latent_frames_for_seconds(at, block) for at, _ in script[1:]]
    timeline = PromptTimeline.switching([prompt for _, prompt in script], starts)
    if length is not None:
        timeline.plan(length, block)
    if length is None or length > MAX_ABSOLUTE_LATENT_FRAMES:
        model.spec = replace(model.spec, positions="relative")
    callbacks = [FrameWriter(args.output), PromptAnnouncer()]
    if not is_typed:
        # A line that is redrawn would wipe away what is being typed.
        callbacks.append(RolloutProgress())
    stream = model.stream(timeline, seed=args.seed, latent_frames=length, callbacks=callbacks)
    if is_typed:
        print(f"type a prompt and press Enter; {QUIT} ends the video")
        threading.Thread(target=listen, args=(sys.stdin, stream), daemon=True).start()
    end_on_ctrl_c(stream)
    for _ in stream:
        pass


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Type prompts while the video grows.")
    parser.add_argument("--prompt", help="what the video shows first")
    parser.add_argument("--output", default="outputs", help="a folder, or a name ending in .mp4")
    parser.add_argument("--seed", type=int, default=0, help="seed of the video")
    parser.add_argument("--seconds", type=float, help="length; else until you stop")
    parser.add_argument("--weights", default="embedded", help="embedded, synthetic, or a folder")
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("longlive").setLevel(logging.INFO)
    try:
        run(args)
    except UserError as error:
        print(f"interactive: error: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, EOFError):
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
