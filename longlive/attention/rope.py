"""3-D rotary positions (RoFormer, arXiv:2104.09864), split over time, rows and columns.

A head of width D holds D / 2 pairs of neighboring elements. Of these c = D / 2 pairs,
``c - 2 * (c // 3)`` turn with the latent frame, ``c // 3`` with the row and ``c // 3`` with the
column.
Angles are computed in float64 from the positions of the call, so there is no table to outgrow, no
buffer for a dtype cast to spoil, and the positions can be a tensor on the device.
"""

# Shape suffixes: F latent frames, H rows and W columns of tokens, L tokens (F * H * W), C pairs,
# B batch, N heads, D head dim.

from typing import Literal, NamedTuple

import torch
from einops import rearrange, repeat
from torch import Tensor

RopeKind = Literal["absolute", "relative"]
"""``absolute``: a latent frame has its own index. ``relative``: its place in the window."""

THETA = 10000.0
MAX_ABSOLUTE_LATENT_FRAMES = 1023
"""The reference's table of positions ends here, for blocks of three."""


class Rotation(NamedTuple):
    """Cosines and sines of a call's tokens, ``[L, 1, C]``, float64 or float32."""

    cos: Tensor
    sin: Tensor


def axis_pairs(head_dim: int) -> tuple[int, int, int]:
    """Pairs that turn with time, rows and columns."""
    pairs = head_dim // 2
    side = pairs // 3
    return pairs - 2 * side, side, side


def angular_steps(pairs: int, device: torch.device | None = None) -> Tensor:
    """Angle per unit of position, ``[pairs]`` float64: ``theta ** (-2 j / (2 pairs))``."""
    exponent = torch.arange(pairs, dtype=torch.float64, device=device) / pairs
    return THETA**-exponent


def rotation(
    positions_F: Tensor, grid_height: int, grid_width: int, head_dim: int, dtype: torch.dtype
) -> Rotation:
    """Rotation of every token of some latent frames.

    Args:
        positions_F: Temporal position of each latent frame; any numeric type.
        grid_height: Rows of tokens.
        grid_width: Columns of tokens.
        head_dim: Width of a head.
        dtype: Type of queries and keys; the rotation is float64 for float64, else float32.
    """
    device = positions_F.device
    time, row, column = axis_pairs(head_dim)
    angles = [
        repeat(
            torch.outer(positions_F.double(), angular_steps(time, device)),
            "F C -> F H W C",
            H=grid_height,
            W=grid_width,
        ),
        repeat(
            torch.outer(
                torch.arange(grid_height, device=device).double(), angular_steps(row, device)
            ),
            "H C -> F H W C",
            F=len(positions_F),
            W=grid_width,
        ),
        repeat(
            torch.outer(
                torch.arange(grid_width, device=device).double(), angular_steps(column, device)
            ),
            "W C -> F H W C",
            F=len(positions_F),
            H=grid_height,
        ),
    ]
    angles_L1C = rearrange(torch.cat(angles, -1), "F H W C -> (F H W) 1 C")
    wide = torch.promote_types(dtype, torch.float32)
    return Rotation(angles_L1C.cos().to(wide), angles_L1C.sin().to(wide))


def turn(
    latent_frames: int, head_dim: int, dtype: torch.dtype, device: torch.device | None = None
) -> Rotation:
    """Rotation that moves rotated keys by some latent frames in time, ``[1, 1, C]``.

    Args:
        latent_frames: Further by as many; back if negative.
        head_dim: Width of a head.
        dtype: Type of the keys, as for :func:`rotation`.
        device: Where the keys are.
    """
    time, row, column = axis_pairs(head_dim)
    angles_C = torch.cat(
        [
            latent_frames * angular_steps(time, device),
            torch.zeros(row + column, dtype=torch.float64, device=device),
        ]
    )
    wide = torch.promote_types(dtype, torch.float32)
    return Rotation(angles_C.cos().to(wide)[None, None], angles_C.sin().to(wide)[None, None])


def rotate(x_BLND: Tensor, by: Rotation) -> Tensor:
    """Turn queries or keys; the product is formed in the rotation's type and rounded once."""
    pairs_BLNC2 = x_BLND.to(by.cos.dtype).unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():
        # A compiler fuses real numbers, and leaves complex ones alone.
        even, odd = pairs_BLNC2.unbind(-1)
        turned = torch.stack((even * by.cos - odd * by.sin, even * by.sin + odd * by.cos), -1)
    else:
        # The same product in one pass over memory in place of seven.
        turned = torch.view_as_real(
            torch.view_as_complex(pairs_BLNC2) * torch.complex(by.cos, by.sin)
        )
    return turned.flatten(-2).to(x_BLND.dtype)
