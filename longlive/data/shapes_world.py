"""The shapes world: clips of one object over one background, drawn from a prompt and a seed.

The embedded model learns this world and is judged in it, so everything about a clip follows from
(prompt, seed): not from the batch it is drawn in, nor from the device. All random values are drawn
on the host, one small background image per clip; the device only evaluates distances and blends,
in chunks, without a single read-back.

Shape suffixes: ``B`` clips, ``T`` frames of a clip, ``N`` frames of a chunk, ``K`` backgrounds,
``C`` channels, ``H`` ``W`` rows and columns.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from longlive.data.shapes_motion import Timeline, background_generator, trace
from longlive.errors import UserError
from longlive.shapes import BACKGROUNDS, COLOURS, OUTLINES, ShapePrompt, coverage

NOISE_STD: dict[str, float] = {"snow": 0.02, "sand": 0.03}
STARS = 24
STAR_RADIUS = 0.006

_SUPERSAMPLING = 4
_CHUNK_PIXELS = 1 << 22  # 16 MiB for each intermediate result
_SMALLEST_SIDE = 96
_SIDE_UNIT = 16


def render_clips(
    prompts: Sequence[ShapePrompt],
    seeds: Sequence[int],
    frames: int,
    side: int = 96,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draw one clip per prompt and seed.

    Args:
        prompts: What each clip shows from its first to its last frame.
        seeds: As many as prompts, none negative.
        frames: Frames of each clip, 16 a second.
        side: Height and width in pixels.
        device: Where to draw, and where the result lies.

    Returns:
        ``[B, T, 3, side, side]``, float32 in [0, 1].

    Raises:
        UserError: If prompts and seeds differ in number, or the side does not fit the world.
    """
    return render_timelines([[(0, prompt)] for prompt in prompts], seeds, frames, side, device)


def render_timeline(
    timeline: Timeline,
    seed: int,
    frames: int,
    side: int = 96,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draw one clip whose prompt changes on the way.

    Args:
        timeline: ``(first frame, prompt)`` in order; the first begins at frame 0.
        seed: As in ``render_clips``; frames before a switch are those of the clip without it.
        frames: Frames of the clip.
        side: Height and width in pixels.
        device: Where to draw, and where the result lies.

    Returns:
        ``[T, 3, side, side]``, float32 in [0, 1].

    Raises:
        UserError: If the timeline is not in order, or the side does not fit the world.
    """
    return render_timelines([timeline], [seed], frames, side, device)[0]


def render_timelines(
    timelines: Sequence[Timeline],
    seeds: Sequence[int],
    frames: int,
    side: int = 96,
    device: torch.device | str = "cpu",
    has_texture: bool = True,
) -> Tensor:
    """Draw a batch of clips, each with its own prompt switches; see ``render_timeline``.

    Args:
        timelines: One for each clip.
        seeds: As many.
        frames: Frames of each clip.
        side: Height and width in pixels.
        device: Where to draw, and where the result lies.
        has_texture: False leaves out the noise and the stars of backgrounds.

    Returns:
        ``[B, T, 3, side, side]``, float32 in [0, 1].
    """
    if len(timelines) != len(seeds):
        raise UserError(f"{len(timelines)} prompts need as many seeds, got {len(seeds)}")
    if side < _SMALLEST_SIDE or side % _SIDE_UNIT:
        raise UserError(
            f"a side of {side} pixels does not fit: use a multiple of {_SIDE_UNIT} "
            f"from {_SMALLEST_SIDE} up"
        )
    shown: list[ShapePrompt] = []
    background_keys: dict[tuple[int, str], int] = {}
    background_index: list[int] = []
    poses = []
    for timeline, seed in zip(timelines, seeds, strict=True):
        track = trace(timeline, seed, frames)
        pose = track.pose
        poses.append(np.stack([pose.x, pose.y, track.radius_T, pose.rotation]))
        for index in track.prompt_index_T:
            prompt = timeline[index][1]
            key = (int(seed), prompt.background)
            shown.append(prompt)
            background_index.append(background_keys.setdefault(key, len(background_keys)))
    if not shown:
        return torch.empty(len(timelines), frames, 3, side, side, device=device)
    images = [
        background_image(name, seed, side) if has_texture else flat_background(name, side)
        for seed, name in background_keys
    ]
    frames_NCHW = _draw(
        shown,
        torch.from_numpy(np.concatenate(poses, axis=1)).float().to(device),
        torch.stack(images).to(device),
        torch.tensor(background_index, device=device),
    )
    return frames_NCHW.unflatten(0, (len(timelines), frames))


def background_image(background: str, seed: int, side: int) -> Tensor:
    """A background without an object.

    Args:
        background: One of the listed backgrounds.
        seed: Draws its noise or its stars, the same ones whenever the background comes back.
        side: Height and width in pixels.

    Returns:
        ``[3, side, side]``, float32 in [0, 1], on the host.
    """
    generator = background_generator(seed, tuple(BACKGROUNDS).index(background))
    flat_CHW = flat_background(background, side)
    if background in NOISE_STD:
        noise_HW = generator.standard_normal((side, side), dtype=np.float32)
        return (flat_CHW + NOISE_STD[background] * torch.from_numpy(noise_HW)).clamp_(0.0, 1.0)
    if background == "night":
        light_HW = _star_light(generator.random((STARS, 2)), side)
        return torch.lerp(flat_CHW, torch.ones(()), light_HW)
    return flat_CHW


def flat_background(background: str, side: int) -> Tensor:
    """The color of a background, without noise or stars: ``[3, side, side]`` on the host."""
    return torch.tensor(BACKGROUNDS[background]).view(3, 1, 1).expand(3, side, side)


def _star_light(centres: np.ndarray, side: int) -> Tensor:
    """Share of each pixel that a star covers, ``[H, W]``.

    A star is about as large as a pixel, where the distance to its outline says little about its
    area: it is sampled instead.
    """
    fine_side = side * _SUPERSAMPLING
    reach = int(np.ceil(STAR_RADIUS * fine_side)) + 1
    offsets = np.arange(-reach, reach + 1)
    nearest = np.floor(centres * fine_side).astype(np.int64)  # [stars, 2]
    samples = nearest[:, None, :] + offsets[None, :, None]  # [stars, offsets, 2]
    away = (samples + 0.5) / fine_side - centres[:, None, :]
    is_lit = away[:, None, :, 0] ** 2 + away[:, :, None, 1] ** 2 < STAR_RADIUS**2
    star, row, column = np.nonzero(is_lit)
    light = np.zeros((fine_side, fine_side), dtype=np.float32)
    light[samples[star, row, 1] % fine_side, samples[star, column, 0] % fine_side] = 1.0
    blocks = light.reshape(side, _SUPERSAMPLING, side, _SUPERSAMPLING)
    return torch.from_numpy(blocks.mean(axis=(1, 3)))


def _draw(
    shown: Sequence[ShapePrompt], pose_4N: Tensor, images_KCHW: Tensor, image_index_N: Tensor
) -> Tensor:
    """Blend every frame's object over its background; rows of ``pose_4N``: x, y, radius, angle."""
    device, side = images_KCHW.device, images_KCHW.shape[-1]
    colour_N3 = torch.tensor([COLOURS[prompt.colour] for prompt in shown], device=device)
    centres_W = (torch.arange(side, device=device) + 0.5) / side
    frames_NCHW = torch.empty(len(shown), 3, side, side, device=device)
    chunk = max(1, _CHUNK_PIXELS // side**2)
    for shape in OUTLINES:
        members = torch.tensor([n for n, prompt in enumerate(shown) if prompt.shape == shape])
        for index in members.to(device).split(chunk) if len(members) else ():
            x, y, radius, rotation = pose_4N[:, index, None, None]
            dx, dy = centres_W - x, centres_W[:, None] - y
            # The nearest image on the torus: no shape reaches half way round it.
            dx, dy = dx - dx.round(), dy - dy.round()
            alpha_NHW = coverage(shape, dx, dy, radius, rotation, 1.0 / side)
            under_NCHW = images_KCHW[image_index_N[index]]
            over_NC11 = colour_N3[index, :, None, None]
            frames_NCHW[index] = torch.lerp(under_NCHW, over_NC11, alpha_NHW[:, None])
    return frames_NCHW
