r"""Watch a live server without a browser: frame times, prompt to pixel, and what it costs there.

    python tools/load.py --seconds 120 --prompt-every 7
    python tools/load.py --address ws://gpu:7860 --token SECRET --viewers 4 --output live.json

The last line is one JSON document. Times are the client's own: a frame counts when it has arrived,
a prompt when the first picture under it has, which leaves out the viewer's decoder and screen.
"""

import argparse
import asyncio
import itertools
import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longlive.client import LiveClient, connect
from longlive.errors import UserError
from longlive.live.protocol import PictureFlag, PictureKind, Queue, Stats, TransportName, Welcome
from longlive.live.statistics import percentile

FPS = 16
STALL_MS = 1.5 * 1000 / FPS


class Viewer:
    """One viewer's measurements.

    Attributes:
        arrivals_s: When each frame came.
        acks_ms: From each prompt to its acknowledgement.
        pixels_ms: From each prompt to its first picture.
    """

    def __init__(self) -> None:
        self.arrivals_s: list[float] = []
        self.acks_ms: list[float] = []
        self.pixels_ms: list[float] = []
        self.first_frame_ms = 0.0
        self.pictures = self.bytes = 0

    async def watch(self, client: LiveClient, args: argparse.Namespace, seed: int) -> None:
        """Play for some time, and change the prompt now and then."""
        await client.wait_for(Queue, lambda queue: queue.position == 0, args.patience)
        prompts = itertools.cycle(prompts_of(args, client.welcome))
        started_s = time.perf_counter()
        settings: dict[str, Any] = {"seed": seed, "recipe": args.recipe, "steps": args.steps}
        await client.start(next(prompts), **settings)
        switching = asyncio.create_task(self._switch(client, prompts, args, random.Random(seed)))
        try:
            async with asyncio.timeout(args.seconds + args.patience):
                async for picture in client.pictures():
                    self.pictures += 1
                    self.bytes += len(picture.payload)
                    if picture.header.kind is PictureKind.MP4_HEADER:
                        continue
                    self.arrivals_s.append(picture.received_s)
                    self.first_frame_ms = self.first_frame_ms or 1000 * (
                        picture.received_s - started_s
                    )
                    asked_s = client.sent_s.get(picture.header.prompt)
                    is_first = picture.header.flags & PictureFlag.FIRST_OF_PROMPT
                    if is_first and asked_s is not None and len(self.arrivals_s) > 1:
                        self.pixels_ms.append(1000 * (picture.received_s - asked_s))
                    if picture.received_s - started_s > args.seconds:
                        break
        finally:
            switching.cancel()
            await asyncio.gather(switching, return_exceptions=True)

    async def _switch(
        self, client: LiveClient, prompts: Any, args: argparse.Namespace, chance: random.Random
    ) -> None:
        # Not in step with the blocks: a person types when they like.
        while args.prompt_every:
            await asyncio.sleep(args.prompt_every * chance.uniform(0.5, 1.5))
            asked_s = time.perf_counter()
            await client.prompt(next(prompts))
            self.acks_ms.append(1000 * (time.perf_counter() - asked_s))

    def report(self, client: LiveClient) -> dict[str, Any]:
        """What was measured, here and at the server."""
        gaps = [1000 * (after - before) for before, after in itertools.pairwise(self.arrivals_s)]
        settled = [
            gap
            for gap, arrival in zip(gaps, self.arrivals_s[1:], strict=True)
            if arrival - self.arrivals_s[0] > 1
        ]
        watched = self.arrivals_s[-1] - self.arrivals_s[0] if self.arrivals_s else 0.0
        stats = [message for message in client.messages if isinstance(message, Stats)]
        return {
            "frames": len(self.arrivals_s),
            "fps": round((len(self.arrivals_s) - 1) / watched, 3) if watched else 0.0,
            "first_frame_ms": round(self.first_frame_ms, 1),
            "frame_ms": summary(gaps),
            "stalls_after_1_s": sum(gap > STALL_MS for gap in settled),
            "ack_ms": summary(self.acks_ms),
            "prompt_to_pixel_ms": summary(self.pixels_ms),
            "bytes_per_frame": round(self.bytes / max(1, len(self.arrivals_s))),
            "server": {
                name: getattr(stats[-1], name)
                for name in (
                    "stalls",
                    "dropped_frames",
                    "block_ms",
                    "encode_ms",
                    "copy_ms",
                    "memory_mib",
                    "device_memory_mib",
                )
            }
            if stats
            else {},
        }


def summary(values: Sequence[float]) -> dict[str, float | int]:
    """Count and percentiles."""
    return {
        "count": len(values),
        **{f"p{share}": round(percentile(values, share / 100), 2) for share in (50, 95, 99)},
        "max": round(max(values, default=0.0), 2),
    }


def prompts_of(args: argparse.Namespace, welcome: Welcome | None) -> list[str]:
    """The prompts to cycle through."""
    if args.prompts:
        return list(args.prompts)
    samples = welcome.model.samples if welcome is not None else ()
    return list(samples[:4]) or ["a large red circle bounces over night", "a blue square"]


async def run(args: argparse.Namespace) -> dict[str, Any]:
    """Let every viewer watch; they take turns where the server has one seat."""
    transports: tuple[TransportName, ...] = (args.transport,)

    async def one(number: int) -> dict[str, Any]:
        client = await connect(args.address, token=args.token, transports=transports)
        async with client:
            viewer = Viewer()
            await viewer.watch(client, args, args.seed + number)
            return viewer.report(client)

    viewers = await asyncio.gather(*(one(number) for number in range(args.viewers)))
    return {
        "address": args.address,
        "transport": args.transport,
        "seconds": args.seconds,
        "viewers": viewers,
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Watch a live server without a browser.")
    parser.add_argument("--address", default="ws://127.0.0.1:7860")
    parser.add_argument("--token", default="")
    parser.add_argument("--transport", default="webcodecs", choices=["webcodecs", "mse", "jpeg"])
    parser.add_argument("--viewers", type=int, default=1, help="at once; they queue")
    parser.add_argument("--seconds", type=float, default=60.0, help="each viewer watches so long")
    parser.add_argument("--prompt-every", type=float, default=7.0, help="seconds; 0 for never")
    parser.add_argument("--prompts", nargs="*", help="to cycle through; else the server's samples")
    parser.add_argument("--recipe")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--patience", type=float, default=600.0, help="seconds to wait for a turn")
    parser.add_argument("--output", type=Path, help="also write the document here")
    args = parser.parse_args(argv)
    if args.viewers < 1 or args.seconds <= 0 or args.prompt_every < 0:
        print("load: error: viewers and seconds must be positive", file=sys.stderr)
        return 2
    try:
        report = asyncio.run(run(args))
    except UserError as error:
        print(f"load: error: {error}", file=sys.stderr)
        return 2
    except TimeoutError:
        print("load: error: no turn came in time; raise --patience", file=sys.stderr)
        return 1
    for number, viewer in enumerate(report["viewers"]):
        frame, pixel = viewer["frame_ms"], viewer["prompt_to_pixel_ms"]
        print(
            f"viewer {number}: {viewer['fps']:.2f} frames/s, first after "
            f"{viewer['first_frame_ms']:.0f} ms; between frames p50 {frame['p50']:.1f} p95 "
            f"{frame['p95']:.1f} max {frame['max']:.1f} ms, {viewer['stalls_after_1_s']} stalls; "
            f"{pixel['count']} prompts, to the pixel p50 {pixel['p50']:.0f} p95 {pixel['p95']:.0f} "
            f"ms, acknowledged within {viewer['ack_ms']['max']:.1f} ms"
        )
    document = json.dumps(report)
    if args.output is not None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(f"{document}\n", encoding="utf-8")
    print(document)
    return 0


if __name__ == "__main__":
    sys.exit(main())
