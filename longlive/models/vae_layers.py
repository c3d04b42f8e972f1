"""Layers of the causal video VAE, for a whole sequence at once or for a stream in pieces.

Every layer that looks at earlier frames is ``Temporal``: it takes a ``Tape`` beside its input. With
a tape it continues a stream: it reads what it kept of the frames before and leaves what the next
call will need. Without one the input is a whole sequence from its first frame. Both run the same
lines, so pieces of any length give the result of the whole. No layer keeps anything itself.

Shapes: B batch, C channels, T frames at the rate of the layer, H rows, W columns.
"""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

_KERNEL = 3
_HISTORY = _KERNEL - 1
_HAS_ONEDNN = torch.backends.mkldnn.is_available()
_PADDING = (0, 1, 1)  # what comes before in time is put there by hand


class Tape:
    """Hands every temporal convolution its slot, in execution order, and collects the new slots.

    Args:
        slots: What the previous call of the stream collected; empty before its first frame.
    """

    def __init__(self, slots: Sequence[Tensor] = ()) -> None:
        self._slots = slots
        self.collected: list[Tensor] = []

    def read(self) -> Tensor | None:
        """Return the slot of the convolution that now runs, ``None`` at the start of the stream."""
        return self._slots[len(self.collected)] if self._slots else None

    def write(self, slot_BCTHW: Tensor) -> None:
        """Keep a slot for the next call; follows the ``read`` of the same convolution.

        The slot is copied: a view would keep all frames of the call alive. Its strides depend on
        its shape and layout alone and not on what it was cut from, which compiled code would take
        for another kind of tensor.
        """
        last = torch.channels_last_3d if slot_BCTHW.ndim == 5 else torch.channels_last
        layout = last if slot_BCTHW.stride(1) == 1 else torch.contiguous_format
        self.collected.append(slot_BCTHW.clone(memory_format=layout))


class Temporal(nn.Module):
    """A layer with ``forward(x_BCTHW, tape)``."""


def run_layers(layers: Iterable[nn.Module], x_BCTHW: Tensor, tape: Tape | None) -> Tensor:
    """Run layers one after another; the temporal ones get the tape."""
    for layer in layers:
        x_BCTHW = layer(x_BCTHW, tape) if isinstance(layer, Temporal) else layer(x_BCTHW)
    return x_BCTHW


_NO_DIRECTION = 1e-6


class ChannelNorm(nn.Module):
    """Scale the vector of channels at every position to root mean square ``gamma``.

    Args:
        channels: Length of the vector.
        position_dims: Dimensions after the channels: 3 for video, 2 for single frames.
    """

    def __init__(self, channels: int, position_dims: int = 3) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *[1] * position_dims))
        self.scale = channels**0.5

    def forward(self, x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        if torch.is_grad_enabled():
            # A vector of zeros has no direction, and a gradient of 1e12: mid grey at the input does
            # that. It gets none.
            x = torch.where(length > _NO_DIRECTION, x, x.detach())
        length = length.clamp_min(1e-12)
        # Autocast computes lengths in float32 and keeps gamma in it; the activations stay as they
        # came, or every later tensor would take twice the memory.
        return x / length.to(x.dtype) * self.scale * self.gamma.to(x.dtype)


class CausalConv3d(Temporal, nn.Conv3d):
    """3x3x3 convolution that sees its own frame and the two before it, zeros before the first."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, _KERNEL, padding=_PADDING)

    def forward(self, x_BCTHW: Tensor, tape: Tape | None = None) -> Tensor:
        history_BCTHW = tape.read() if tape else None
        if history_BCTHW is None:
            x_BCTHW = F.pad(x_BCTHW, (0, 0, 0, 0, _HISTORY, 0))
        else:
            x_BCTHW = torch.cat([history_BCTHW, x_BCTHW], dim=2)
        if tape:
            tape.write(x_BCTHW[:, :, -_HISTORY:])
        return super().forward(x_BCTHW)

    def _conv_forward(self, x_BCTHW: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """On a CPU go to oneDNN by name.

        torch judges by the first four sizes whether a convolution is worth it, and takes a loop of
        its own, several times slower, for one video at low resolution.
        """
        is_float32_on_cpu = x_BCTHW.is_cpu and x_BCTHW.dtype == weight.dtype == torch.float32
        if torch.compiler.is_compiling() or not (_HAS_ONEDNN and is_float32_on_cpu):
            return super()._conv_forward(x_BCTHW, weight, bias)
        ones = (1, 1, 1)
        return torch.mkldnn_convolution(x_BCTHW, weight, bias, _PADDING, ones, ones, 1)


class ResidualBlock(Temporal):
    """Two normalized convolutions beside a shortcut."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            ChannelNorm(channels_in),
            nn.SiLU(),
            CausalConv3d(channels_in, channels_out),
            ChannelNorm(channels_out),
            nn.SiLU(),
            nn.Identity(),  # the published keys count a dropout here
            CausalConv3d(channels_out, channels_out),
        )
        self.shortcut: nn.Module = (
            nn.Identity()
            if channels_in == channels_out
            else nn.Conv3d(channels_in, channels_out, 1)
        )

    def forward(self, x_BCTHW: Tensor, tape: Tape | None = None) -> Tensor:
        return run_layers(self.residual, x_BCTHW, tape) + self.shortcut(x_BCTHW)


class FrameAttention(nn.Module):
    """Single-head attention among the positions of each frame, beside a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels, position_dims=2)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        batch, _, _, height, _ = x_BCTHW.shape
        x_NCHW = rearrange(x_BCTHW, "B C T H W -> (B T) C H W")
        qkv_NCHW = self.to_qkv(self.norm(x_NCHW))
        q, k, v = rearrange(qkv_NCHW, "N (three C) H W -> three N 1 (H W) C", three=3)
        attended = F.scaled_dot_product_attention(q, k, v)
        out_NCHW = self.proj(rearrange(attended, "N 1 (H W) C -> N C H W", H=height))
        return x_BCTHW + rearrange(out_NCHW, "(B T) C H W -> B C T H W", B=batch)


class _PerFrame(nn.Module):
    """Base of the layers that change the size of single frames by ``resample``."""

    resample: nn.Sequential

    def resize(self, x_BCTHW: Tensor) -> Tensor:
        x_NCHW = self.resample(rearrange(x_BCTHW, "B C T H W -> (B T) C H W"))
        return rearrange(x_NCHW, "(B T) C H W -> B C T H W", B=x_BCTHW.shape[0])


class Down2(_PerFrame):
    """Halve rows and columns; the window hangs over on the right and at the bottom."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.resample = nn.Sequential(
            nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(channels, channels, 3, stride=2)
        )

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        return self.resize(x_BCTHW)


class Down3(_PerFrame, Temporal):
    """Halve rows, columns and frames; the first frame of a stream stays as it is.

    A stream's first call takes an odd number of frames, every later one an even number.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.resample = nn.Sequential(
            nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(channels, channels, 3, stride=2)
        )
        self.time_conv = nn.Conv3d(channels, channels, (_KERNEL, 1, 1), stride=(2, 1, 1))

    def forward(self, x_BCTHW: Tensor, tape: Tape | None = None) -> Tensor:
        x_BCTHW = self.resize(x_BCTHW)
        last_BCTHW = tape.read() if tape else None
        if tape:
            tape.write(x_BCTHW[:, :, -1:])
        if last_BCTHW is not None:
            return self.time_conv(torch.cat([last_BCTHW, x_BCTHW], dim=2))
        if x_BCTHW.shape[2] == 1:
            return x_BCTHW
        return torch.cat([x_BCTHW[:, :, :1], self.time_conv(x_BCTHW)], dim=2)


class Up2(_PerFrame):
    """Double rows and columns and halve the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.resample = nn.Sequential(
            nn.Upsample(scale_factor=2.0, mode="nearest"),
            nn.Conv2d(channels, channels // 2, 3, padding=1),
        )

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        return self.resize(x_BCTHW)


class Up3(_PerFrame, Temporal):
    """Double rows, columns and frames and halve the channels.

    The first frame of a stream is not doubled, and is not part of the history of those after it:
    they see zeros in its place.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.resample = nn.Sequential(
            nn.Upsample(scale_factor=2.0, mode="nearest"),
            nn.Conv2d(channels, channels // 2, 3, padding=1),
        )
        self.time_conv = nn.Conv3d(channels, 2 * channels, (_KERNEL, 1, 1))

    def forward(self, x_BCTHW: Tensor, tape: Tape | None = None) -> Tensor:
        history_BCTHW = tape.read() if tape else None
        first = []
        if history_BCTHW is None:
            zero_BCTHW = torch.zeros_like(x_BCTHW[:, :, :1])
            history_BCTHW = torch.cat([zero_BCTHW, zero_BCTHW], dim=2)
            first, x_BCTHW = [x_BCTHW[:, :, :1]], x_BCTHW[:, :, 1:]
        is_alone = x_BCTHW.shape[2] == 0
        x_BCTHW = history_BCTHW if is_alone else torch.cat([history_BCTHW, x_BCTHW], dim=2)
        if tape:
            tape.write(x_BCTHW[:, :, -_HISTORY:])
        if is_alone:
            return self.resize(first[0])
        # By way of channels last: einops would lay the result out with the channels first.
        halves_BTHWC = rearrange(
            self.time_conv(x_BCTHW), "B (two C) T H W -> B (T two) H W C", two=2
        )
        doubled_BCTHW = rearrange(halves_BTHWC, "B T H W C -> B C T H W")
        return self.resize(torch.cat([*first, doubled_BCTHW], dim=2))


def init_for_training(module: nn.Module, residual_gain: float = 0.3) -> None:
    """Draw weights to train from: still pictures pass through time, residual branches start small.

    Called by ``Module.apply``. The temporal convolutions of ``Up3`` and ``Down3`` start near the
    newest frame of their window, so the network starts as a VAE of single frames; the random part
    carries motion from the first step.

    Args:
        module: One layer; the others of the tree are left alone.
        residual_gain: Factor on the last convolution of every residual branch.
    """
    if isinstance(module, nn.Conv2d | nn.Conv3d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, ResidualBlock | FrameAttention):
        last = module.proj if isinstance(module, FrameAttention) else module.residual[-1]
        with torch.no_grad():
            last.get_parameter("weight").mul_(residual_gain)
    elif isinstance(module, Down3 | Up3):
        weight = module.time_conv.weight
        channels = weight.shape[1]
        with torch.no_grad():
            weight.mul_(residual_gain)
            newest = torch.eye(channels, device=weight.device)
            weight[:, :, -1, 0, 0] += newest.repeat(weight.shape[0] // channels, 1)


def use_channels_last(module: nn.Module) -> None:
    """Lay out convolution weights with the channels last, in place; activations follow them.

    The layout of the tensor-core kernels for both 2-D and 3-D convolutions; results are equal up
    to rounding.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Conv3d):
            last = torch.channels_last if layer.weight.ndim == 4 else torch.channels_last_3d
            layer.weight.data = layer.weight.data.contiguous(memory_format=last)
