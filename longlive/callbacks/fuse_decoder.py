"""The VAE's streaming decoder with one kernel between two convolutions.

Between two of its convolutions the decoder adds a bias and a shortcut, norms, applies SiLU and puts
the frames behind those of the call before. Each is little work on a large tensor, and together they
take as long as the convolutions. Here they are one kernel (``longlive.kernels``), and all tensors
have their channels last, which is what the convolutions want. The convolutions of the largest
frames have a kernel of their own. The modules, their weights and the state are those of the model;
only what is called in between differs.
"""

# Shape suffixes: B batch, F latent frames, T frames, S = 2 + T frames with the two before them,
# C channels, O channels of a result, N pictures, H W rows and columns.

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from longlive.callbacks.optimization import (
    Optimization,
    SeenOnce,
    compiler_missing,
    device_of,
    parts_of,
)
from longlive.kernels.conv_input import HISTORY, Addends, conv_input, conv_input_and_sum
from longlive.kernels.convolve_frames import convolve_frames, fits
from longlive.kernels.interleave import interleave_frames, interleave_phases
from longlive.models.decoding_stream import DecodingStream
from longlive.models.vae import WanVAE
from longlive.models.vae_layers import (
    ChannelNorm,
    ResidualBlock,
    Tape,
    Up2,
    Up3,
    run_layers,
    use_channels_last,
)
from longlive.models.vae_networks import DecoderState
from longlive.rollout.decode import StreamingDecoder
from longlive.rollout.hooks import WrapOrder
from longlive.rollout.state import RolloutSpec


@runtime_checkable
class GivesPhases(Protocol):
    """An upsampling that computes the four phases of its result side by side."""

    def phases(self, x_NCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the input of ``interleave_phases``: ``[N, 4 O, H + 1, W + 1]`` and a bias."""
        ...


@dataclass(frozen=True)
class FusedStep:
    """``WanVAE.decode_step`` with fused kernels; equal for the same VAE.

    Args:
        vae: Its weights are read in every call.
    """

    vae: WanVAE

    def __call__(self, latents_BFCHW: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """As :meth:`WanVAE.decode_step`; either can go on from the state of the other."""
        decoder, tape = self.vae.decoder, Tape(state.slots)
        x_BCSHW = conv_input(Addends(self.vae.latents_in(latents_BFCHW)), tape.read())
        addends = Addends(_convolved(x_BCSHW, decoder.conv1, tape), bias_C=decoder.conv1.bias)
        for layer in (*decoder.middle, *decoder.upsamples):
            addends = _run_layer(layer, addends, tape)
        norm, _, conv = decoder.head
        x_BCSHW = conv_input(addends, tape.read(), _gamma(norm))
        raw_BCTHW = _convolved(x_BCSHW, conv, tape, conv.get_parameter("bias"))
        raw_BTCHW = rearrange(raw_BCTHW, "B C T H W -> B T C H W")
        return raw_BTCHW, DecoderState(tuple(tape.collected))


def _run_layer(layer: nn.Module, addends: Addends, tape: Tape) -> Addends:
    if isinstance(layer, ResidualBlock):
        return _residual_block(layer, addends, tape)
    if isinstance(layer, Up3):
        return _resized(layer, _doubled(layer, addends, tape))
    if isinstance(layer, Up2):
        return _resized(layer, addends.total())
    return Addends(run_layers([layer], addends.total(), tape))


def _residual_block(block: ResidualBlock, addends: Addends, tape: Tape) -> Addends:
    norm, _, conv, next_norm, _, _, next_conv = block.residual
    x_BCSHW, sum_BCTHW = conv_input_and_sum(addends, tape.read(), _gamma(norm))
    y_BCTHW = _convolved(x_BCSHW, conv, tape)
    addends = Addends(y_BCTHW, bias_C=conv.get_parameter("bias"))
    x_BCSHW = conv_input(addends, tape.read(), _gamma(next_norm))
    y_BCTHW = _convolved(x_BCSHW, next_conv, tape)
    bias_C = next_conv.get_parameter("bias")
    if isinstance(block.shortcut, nn.Identity):
        return Addends(y_BCTHW, sum_BCTHW, bias_C)
    shortcut_BCTHW = F.conv3d(sum_BCTHW, block.shortcut.get_parameter("weight"))
    wide = torch.promote_types(bias_C.dtype, torch.float32)
    both_C = bias_C.to(wide) + block.shortcut.get_parameter("bias").to(wide)
    return Addends(y_BCTHW, shortcut_BCTHW, both_C)


def _doubled(up: Up3, addends: Addends, tape: Tape) -> Tensor:
    """The frames of a layer twice, except for the first frame of a stream."""
    history_BCTHW = tape.read()
    if history_BCTHW is not None:
        return _doubled_frames(up, addends, history_BCTHW, tape)
    x_BCTHW = addends.total()
    first_BCTHW, rest_BCTHW = x_BCTHW[:, :, :1], x_BCTHW[:, :, 1:]
    if rest_BCTHW.shape[2]:
        rest_BCTHW = _doubled_frames(up, Addends(rest_BCTHW), None, tape)
        return torch.cat([first_BCTHW, rest_BCTHW], dim=2)
    # The frames after it see zeros in its place.
    tape.write(torch.zeros_like(first_BCTHW).repeat_interleave(HISTORY, dim=2))
    return first_BCTHW


def _doubled_frames(up: Up3, addends: Addends, history_BCTHW: Tensor | None, tape: Tape) -> Tensor:
    x_BCSHW = conv_input(addends, history_BCTHW)
    return interleave_frames(_convolved(x_BCSHW, up.time_conv, tape), up.time_conv.bias)


def _resized(up: Up2 | Up3, x_BCTHW: Tensor) -> Addends:
    """Double rows and columns."""
    x_NCHW = rearrange(x_BCTHW, "B C T H W -> (B T) C H W")
    if isinstance(up.resample, GivesPhases):
        x_NCHW, bias_C = interleave_phases(*up.resample.phases(x_NCHW)), None
    else:
        upsample, conv = up.resample
        x_NCHW = F.conv2d(upsample(x_NCHW), conv.get_parameter("weight"), padding=1)
        bias_C = conv.get_parameter("bias")
    x_BCTHW = rearrange(x_NCHW, "(B T) C H W -> B C T H W", B=x_BCTHW.shape[0])
    return Addends(x_BCTHW, bias_C=bias_C)


def _convolved(
    x_BCSHW: Tensor, conv: nn.Module, tape: Tape, bias_O: Tensor | None = None
) -> Tensor:
    """Convolve frames that have their history before them, and keep the last for the next call."""
    assert isinstance(conv, nn.Conv3d)
    assert isinstance(conv.padding, tuple)
    tape.write(x_BCSHW[:, :, -HISTORY:])
    if bias_O is None and fits(x_BCSHW, conv):
        y_BCTHW: Tensor = convolve_frames(x_BCSHW, conv.weight)
        return y_BCTHW
    return F.conv3d(x_BCSHW, conv.weight, bias_O, padding=conv.padding)


def _gamma(norm: nn.Module) -> Tensor:
    assert isinstance(norm, ChannelNorm)
    return norm.gamma.flatten()


class FuseDecoder(Optimization):
    """Puts one kernel between two convolutions of the VAE's streaming decoder.

    The decoder's convolution weights are laid out with their channels last, in place. A decoder
    that is not the VAE's is left alone. Without a GPU the kernels' plain versions run, and torch's
    own convolutions, which show what the kernels do and save no time.

    Numerics: exact up to rounding; sums, norms and SiLU are computed in float32 and rounded once.

    Args:
        rehearses: Whether a rollout on a GPU begins by decoding two blocks of nothing; if not, the
            first two blocks wait for Triton.
        required: Whether it is an error if there is a GPU and no Triton.
    """

    wrap_order = WrapOrder.KERNELS

    def __init__(self, rehearses: bool = True, required: bool = True) -> None:
        super().__init__(required)
        self.rehearses = rehearses
        self._seen = SeenOnce()

    def missing(self, device: torch.device) -> str | None:
        return compiler_missing(device, "inductor") if device.type == "cuda" else None

    def configure_rollout(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, spec: RolloutSpec
    ) -> RolloutSpec:
        on_gpu = device_of(pl_module).type == "cuda"
        if not self.rehearses or not on_gpu or not self.is_usable(pl_module):
            return spec
        is_new = self._seen.is_new(pl_module, (spec.geometry, spec.batch))
        return spec.rehearsed() if is_new else spec

    def configure_decoder(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, decoder: StreamingDecoder
    ) -> StreamingDecoder:
        if not isinstance(decoder, DecodingStream) or not self.is_usable(pl_module):
            return decoder
        for vae in parts_of(pl_module, WanVAE):
            if decoder.step == vae.decode_step:
                use_channels_last(vae.decoder)
                return DecodingStream(FusedStep(vae), decoder.state, decoder.to_frames)
        return decoder
