"""Which pixels of a frame are the object, by how much, and what the colours on both sides are.

A network's frames have soft edges, speckles and shifted colours, so nothing here compares a pixel
with the palette. The background is the median of the frame (an object never covers a quarter of
it), the object is the heaviest connected region that stands out, and a pixel's share ``alpha``
of the object is its place on the line between the two colours. A blur moves alpha about but keeps
its sum, so areas survive it.

Shape suffixes: ``N`` frames, ``C`` channels, ``H`` ``W`` rows and columns, ``P`` pixels.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from longlive.errors import UserError

READ_SIDE = 96  # frames are averaged down to about this side before they are read
STANDS_OUT = 0.2  # RGB distance from the background; listed colours are at least 0.5 away
STANDS_OUT_OVER_NOISE = 6.0  # the same, in medians of the distance
OFF_THE_LINE = 0.3  # RGB distance from the line background to object: stars are 0.8 away
SMALLEST_AREA = 0.003  # of the frame; the smallest shape, at the end of a pulse, covers 0.0086
_CHUNK_PIXELS = 1 << 20
FULL_COLOUR = 0.85  # of the upper quartile of the object's distances


@dataclass(frozen=True, slots=True)
class Segments:
    """Object and background of ``N`` frames.

    Attributes:
        alpha_NHW: Each pixel's share of the object, about [0, 1]; 0 away from it.
        region_NHW: True on the object and its soft edge.
        colour_N3: Median colour of the object.
        background_N3: Median colour of the frame.
        background_mean_N: Mean over channels and over pixels outside the region.
        is_found_N: False where nothing stands out enough to be an object.
    """

    alpha_NHW: Tensor
    region_NHW: Tensor
    colour_N3: Tensor
    background_N3: Tensor
    background_mean_N: Tensor
    is_found_N: Tensor


def check_frames(frames_NCHW: Tensor) -> None:
    """Raise a UserError unless these are square RGB frames of the shapes world."""
    is_clip = frames_NCHW.ndim == 4 and frames_NCHW.shape[1] == 3 and len(frames_NCHW) > 0
    if not is_clip or not frames_NCHW.is_floating_point():
        raise UserError(
            f"a clip must be float [T, 3, side, side], got {frames_NCHW.dtype} "
            f"{list(frames_NCHW.shape)}"
        )
    height, width = frames_NCHW.shape[2:]
    if height != width or height < READ_SIDE or height % 16:
        raise UserError(
            f"frames of {width}x{height} pixels do not fit the shapes world: both sides must be "
            f"the same multiple of 16, from {READ_SIDE} up"
        )


def shrink_factor(side: int) -> int:
    """How many pixels a side are averaged before reading; it divides the side."""
    return max(k for k in range(1, side // READ_SIDE + 1) if side % k == 0 and side // k % 2 == 0)


def shrunk_chunks(frames_NCHW: Tensor) -> Iterator[Tensor]:
    """Frames of reading size, float32, as many at a time as fit a small memory."""
    side = frames_NCHW.shape[-1]
    for frames in frames_NCHW.split(max(1, _CHUNK_PIXELS // side**2)):
        yield functional.avg_pool2d(frames.float(), shrink_factor(side))


def segment(frames_NCHW: Tensor) -> Segments:
    """Split frames, ``[N, 3, side, side]`` in [0, 1] with an even side, into object and rest."""
    background_N3 = frames_NCHW.flatten(2).median(dim=2).values
    delta_NCHW = frames_NCHW - background_N3[:, :, None, None]
    distance_NHW = delta_NCHW.square().sum(1).sqrt_()
    noise_N = distance_NHW.flatten(1).median(dim=1).values
    threshold_N = (STANDS_OUT_OVER_NOISE * noise_N).clamp_(min=STANDS_OUT)

    component_NHW = _heaviest_component(distance_NHW, threshold_N)
    member_NHW = (distance_NHW > threshold_N[:, None, None]) & _twice(component_NHW)
    region_NHW = _twice(_grown(component_NHW))
    colour_N3 = _object_colour(frames_NCHW, distance_NHW, member_NHW)

    line_N3 = colour_N3 - background_N3
    length_N = line_N3.square().sum(1)
    # Sums of products, not matrix products: autocast and TF32 would round those.
    onto_line_N3 = line_N3 / length_N[:, None]
    alpha_NHW = (delta_NCHW * onto_line_N3[:, :, None, None]).sum(1)
    # Noise must be able to cancel on both sides, or areas grow with it.
    alpha_NHW = alpha_NHW.clamp_(-0.2, 1.2)
    off_line_NHW = (delta_NCHW - alpha_NHW[:, None] * line_N3[:, :, None, None]).square().sum(1)
    alpha_NHW = alpha_NHW * (region_NHW & (off_line_NHW < OFF_THE_LINE**2))

    outside_NHW = ~region_NHW
    outside_sum_N = (frames_NCHW.mean(1) * outside_NHW).sum((1, 2))
    area_N = alpha_NHW.mean((1, 2))
    return Segments(
        alpha_NHW=alpha_NHW.nan_to_num_(),
        region_NHW=region_NHW,
        colour_N3=colour_N3,
        background_N3=background_N3,
        background_mean_N=outside_sum_N / outside_NHW.sum((1, 2)).clamp(min=1),
        is_found_N=(area_N > SMALLEST_AREA) & (length_N > STANDS_OUT**2),
    )


@torch.no_grad()
def background_pixels(frames_TCHW: Tensor) -> Tensor:
    """Where each frame shows no part of the object, nor its soft edge: ``[T, H, W]``, bool."""
    check_frames(frames_TCHW)
    factor = shrink_factor(frames_TCHW.shape[-1])
    parts = [segment(shrunk).region_NHW for shrunk in shrunk_chunks(frames_TCHW)]
    region_THW = torch.cat(parts)
    return ~region_THW.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)


def _heaviest_component(distance_NHW: Tensor, threshold_N: Tensor) -> Tensor:
    """The connected region with the largest sum of distance, on cells of 2x2 pixels.

    Every cell starts with its own number and takes the largest among its neighbors', and then what
    the cell of that number has, until nothing changes: then a component has one number. By looking
    up, a number travels much farther than a cell in a step.
    """
    weight_NHW = functional.avg_pool2d(distance_NHW[:, None], 2)[:, 0]
    is_out_NHW = weight_NHW > threshold_N[:, None, None]
    count, rows, columns = weight_NHW.shape
    numbers_HW = torch.arange(1, rows * columns + 1, device=weight_NHW.device).view(rows, columns)
    label_NHW = numbers_HW * is_out_NHW.float()
    while True:
        grown_NP = (_grown(label_NHW) * is_out_NHW).flatten(1)
        # In front, number 0, which is nothing.
        known_NP = functional.pad(grown_NP, (1, 0))
        further_NHW = known_NP.gather(1, grown_NP.long()).view_as(label_NHW)
        if torch.equal(further_NHW, label_NHW):
            break
        label_NHW = further_NHW
    label_NP = label_NHW.flatten(1).long()
    mass = torch.zeros(count, rows * columns + 1, device=weight_NHW.device, dtype=weight_NHW.dtype)
    mass.scatter_add_(1, label_NP, weight_NHW.flatten(1))
    heaviest_N = mass[:, 1:].argmax(1) + 1
    return (label_NP == heaviest_N[:, None]).view(count, rows, columns)


def _grown(field_NHW: Tensor) -> Tensor:
    """Largest value among the eight neighbours and the cell itself, on a torus."""
    padded = functional.pad(field_NHW[:, None].float(), (1, 1, 1, 1), mode="circular")
    return functional.max_pool2d(padded, 3, stride=1)[:, 0].to(field_NHW.dtype)


def _twice(field_NHW: Tensor) -> Tensor:
    return field_NHW.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)


def _object_colour(frames_NCHW: Tensor, distance_NHW: Tensor, member_NHW: Tensor) -> Tensor:
    """Median colour of the pixels that stand out nearly as much as the object's upper quartile.

    A blurred object is paler near its edge, and a thin ring is all edge.
    """
    distance_NP = distance_NHW.masked_fill(~member_NHW, torch.nan).flatten(1)
    middle_N = distance_NP.nanmedian(dim=1).values
    upper_NP = distance_NP.masked_fill(~(distance_NP >= middle_N[:, None]), torch.nan)
    is_full_NP = distance_NP > FULL_COLOUR * upper_NP.nanmedian(dim=1).values[:, None]
    hidden_NCP = frames_NCHW.flatten(2).masked_fill(~is_full_NP[:, None], torch.nan)
    return hidden_NCP.nanmedian(dim=2).values
