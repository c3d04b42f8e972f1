"""Decoding beside the transformer, and the first frames that somebody waits for before the rest.

A block's frames depend on its clean latents and on nothing that the transformer does next. So they
are made in a stream of their own while the context update and the next block run: the GPU fills
with the one what the other leaves idle. Whoever is shown the frames works in that stream too; only
who asks for ``Block.frames`` makes the main stream wait.

The first latent frame of a video is one frame and a tenth of the work of a block. Decoded alone it
is on the screen while the others are still being decoded; the transformer lets it pass. The first
one under a new prompt goes the same way, for who has typed it.

The stream may be one of another GPU: then the two do not share what one GPU can do. Latents are
copied there in a stream of their own. A copy between devices waits in both of its streams for what
was queued before, and the transformer's would wait for the decoder.
"""

# Shape suffixes: B batch, F latent frames, T frames, C channels, H W rows and columns.

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from longlive.callbacks.optimization import Optimization, decoder_of, device_of
from longlive.errors import UserError
from longlive.rollout.decode import FramesOf, Show, StreamingDecoder
from longlive.rollout.hooks import MakeCaches, WrapOrder
from longlive.rollout.snapshot import RewindableDecoder
from longlive.rollout.state import RolloutState


class PipelinedDecoder:
    """A decoder that works in a stream of its own, and shows the first latent frame at once.

    Args:
        decoder: At the start of a video.
        stream: Where it works; None for the current stream.
        first_alone: Whether the first latent frame is decoded alone.
        copies: Where latents are copied to the stream's device; None if they are there.
        prompt_alone: Whether the first one after :meth:`hurry` is.
    """

    def __init__(
        self,
        decoder: StreamingDecoder,
        stream: torch.cuda.Stream | None,
        first_alone: bool,
        copies: torch.cuda.Stream | None = None,
        prompt_alone: bool = False,
    ) -> None:
        self._decoder = decoder
        self._stream = stream
        self._copies = copies
        self._first_alone = first_alone
        self._prompt_alone = prompt_alone
        self._is_started = self._hurries = False

    def hurry(self) -> None:
        """Show the first latent frame of the next call before the others, if it is to be alone."""
        self._hurries = self._prompt_alone

    def decode(self, latents_BFCHW: Tensor) -> Tensor:
        """Decode the next latents; the current stream waits for the frames."""
        return self.decode_pieces(latents_BFCHW, lambda frames: None)()

    def decode_pieces(self, latents_BFCHW: Tensor, show: Show) -> FramesOf:
        """Decode the next latents, and show what is awaited before the others."""
        frames = latents_BFCHW.shape[1]
        is_awaited = self._hurries or (self._first_alone and not self._is_started)
        is_split = is_awaited and frames > 1
        self._is_started, self._hurries = True, False
        pieces: list[Tensor] = []
        main = torch.cuda.current_stream(latents_BFCHW.device) if self._stream else None
        with self._aside(latents_BFCHW) as there_BFCHW:
            for piece_BFCHW in there_BFCHW.split([1, frames - 1] if is_split else frames, dim=1):
                pieces.append(self._decoder.decode(piece_BFCHW))
                show(pieces[-1])
                if is_awaited and len(pieces) == 1:
                    self._hold(main)
            if self._stream is None:
                return lambda: _joined(pieces)
            where = self._stream.device
            done = self._stream.record_event()

        def frames_of() -> Tensor:
            current = torch.cuda.current_stream(where)
            current.wait_event(done)
            for piece in pieces:
                # Its memory may not be reused by the decoder while the current stream reads it.
                piece.record_stream(current)
            return _joined(pieces)

        return frames_of

    def snapshot(self) -> Any:
        """What the decoder remembers.

        Raises:
            UserError: If the decoder cannot be rewound.
        """
        self._wait()
        return self._is_started, self._rewindable.snapshot()

    def restore(self, state: Any) -> None:
        """Go on from where ``snapshot`` was called."""
        self._wait()
        self._is_started, inner = state
        self._rewindable.restore(inner)

    @property
    def _rewindable(self) -> RewindableDecoder:
        if not isinstance(self._decoder, RewindableDecoder):
            raise UserError(f"{type(self._decoder).__name__} cannot be rewound")
        return self._decoder

    @contextmanager
    def _aside(self, latents_BFCHW: Tensor) -> Iterator[Tensor]:
        """Turn to the decoder's stream; give the latents, on its device."""
        if self._stream is None:
            yield latents_BFCHW
            return
        reader = self._copies or self._stream
        reader.wait_stream(torch.cuda.current_stream(latents_BFCHW.device))
        latents_BFCHW.record_stream(reader)
        # The last one is where work goes; the other one is current on its own device.
        with torch.cuda.stream(self._copies), torch.cuda.stream(self._stream):
            yield latents_BFCHW.to(self._stream.device, non_blocking=True)

    def _hold(self, main: torch.cuda.Stream | None) -> None:
        """Let what comes in the transformer's stream wait, if the decoder shares its GPU."""
        if main is not None and self._stream is not None and self._copies is None:
            main.wait_event(self._stream.record_event())

    def _wait(self) -> None:
        """What was queued in the decoder's stream comes before what the current one does next."""
        if self._stream is not None:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)


def _joined(pieces: list[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, 1)


class PipelineDecoding(Optimization):
    """Decodes in a stream of its own, perhaps on another GPU, and what is awaited before the rest.

    Numerics: exact up to rounding; the first block of a video and those under new prompts are cut
    in two, and convolutions of other shapes sum in another order.

    Args:
        side_stream: Whether to decode in a stream of its own; without CUDA there is only one.
        first_alone: Whether the first latent frame is decoded and shown alone.
        prompt_alone: Whether the first one under a new prompt is, too.
        is_urgent: Whether the decoder's kernels go before the transformer's wherever both wait: a
            block is shown sooner, and the next one begins as much later.
        device: Where the decoder goes, ``cuda:1`` for one; by default it stays with the others. It
            stays there: a later rollout of this model needs this callback, too.
        required: Whether it is an error if there is no such device.
    """

    wrap_order = WrapOrder.STREAM

    def __init__(
        self,
        side_stream: bool = True,
        first_alone: bool = True,
        prompt_alone: bool = True,
        is_urgent: bool = False,
        device: str | None = None,
        required: bool = True,
    ) -> None:
        super().__init__(required)
        if device is not None and not side_stream:
            raise UserError("a decoder on another device has a stream there: leave side_stream out")
        if device is not None and not re.fullmatch(r"cuda(:\d+)?", device):
            raise UserError(f"there is no device {device!r}: write cuda:1 for the second GPU")
        self.side_stream = side_stream
        self.first_alone = first_alone
        self.prompt_alone = prompt_alone
        self.is_urgent = is_urgent
        self.device = device
        self._stream: torch.cuda.Stream | None = None
        self._copies: torch.cuda.Stream | None = None
        self._pipelined: PipelinedDecoder | None = None

    def missing(self, device: torch.device) -> str | None:
        if self.device is None:
            return None
        wanted, there = torch.device(self.device), torch.cuda.device_count()
        if device.type == wanted.type == "cuda" and (wanted.index or 0) < there:
            return None
        return f"the device {self.device} beside {device}, and there are {there} CUDA devices"

    # The first hook with weights in it; what the decoder remembers is made where they are.
    def configure_caches(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, make: MakeCaches
    ) -> MakeCaches:
        if self.device is not None and self.is_usable(pl_module):
            decoder_of(pl_module).to(self.device)
        return make

    def configure_decoder(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, decoder: StreamingDecoder
    ) -> StreamingDecoder:
        here, device = device_of(pl_module), device_of(decoder_of(pl_module))
        if self.side_stream and device.type == "cuda" and self._stream is None:
            self._stream = torch.cuda.Stream(device, -1 if self.is_urgent else 0)
            self._copies = torch.cuda.Stream(here) if here != device else None
        self._pipelined = PipelinedDecoder(
            decoder, self._stream, self.first_alone, self._copies, self.prompt_alone
        )
        return self._pipelined

    def on_prompt_switch(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, state: RolloutState
    ) -> None:
        if self._pipelined is not None and state.block_index:
            self._pipelined.hurry()
