"""One CUDA graph for each kind of step of the streaming decoder.

A step is a function of latents and state. The graphs own the state: they read it from buffers of
their own and write the new one over it, so that between two blocks nothing is handed over. When
another video's decoder takes its turn, the state of the one before is copied out and its own is
copied in. The kinds are the numbers of latent frames in a call, with a state and without one.
"""

# Shape suffixes: B batch, F latent frames, T frames, C channels, H W rows and columns.

import logging
import weakref
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from longlive.callbacks.graph_recorder import GraphRecorder, Recorder, Recording
from longlive.callbacks.optimization import Optimization, SeenOnce, decoder_of, device_of
from longlive.models.decoding_stream import DecodingStream
from longlive.rollout.decode import StreamingDecoder
from longlive.rollout.hooks import WrapOrder
from longlive.rollout.state import RolloutSpec

log = logging.getLogger(__name__)

_Kind = tuple[tuple[int, ...], bool]
_Slots = list[Tensor]


class DecoderGraphs:
    """The graphs of a decoder, and the buffers of its state.

    Args:
        stream: At the start of a video; says what a step is.
        recorder: Records the graphs.
    """

    def __init__(self, stream: DecodingStream[Any], recorder: Recorder) -> None:
        self.failure = ""
        self._step = stream.step
        self._to_frames = stream.to_frames
        self._empty = stream.state
        self._recorder = recorder
        self._slots: _Slots = []
        self._steps: dict[_Kind, tuple[Tensor, Recording]] = {}
        self._owner: weakref.ref[CapturedDecoder] | None = None

    def decode(self, latents_BFCHW: Tensor, decoder: "CapturedDecoder") -> Tensor:
        """Decode the next latents of a video, whose state becomes the one in the buffers."""
        self._turn_to(decoder)
        kind = tuple(latents_BFCHW.shape), decoder.is_started
        decoder.is_started = True
        if kind not in self._steps:
            return self._first(kind, latents_BFCHW)
        own_BFCHW, recording = self._steps[kind]
        own_BFCHW.copy_(latents_BFCHW)
        recording.replay()
        frames: Tensor = recording.out.clone()
        return frames

    def slots_of(self, decoder: "CapturedDecoder") -> _Slots:
        """A copy of what a decoder remembers."""
        slots = self._slots if self._owned_by(decoder) else decoder.slots
        return [slot.clone() for slot in slots] if decoder.is_started else []

    def forget(self, decoder: "CapturedDecoder") -> None:
        """The state in the buffers is not the one of this decoder any more."""
        if self._owned_by(decoder):
            self._owner = None

    def state_of(self, slots: _Slots) -> Any:
        """The state that consists of these slots."""
        return type(self._empty)(tuple(slots))

    def _owned_by(self, decoder: "CapturedDecoder") -> bool:
        return self._owner is not None and self._owner() is decoder

    def _turn_to(self, decoder: "CapturedDecoder") -> None:
        if self._owned_by(decoder):
            return
        before = self._owner() if self._owner is not None else None
        if before is not None:
            before.slots = self.slots_of(before)
        for mine, theirs in zip(self._slots, decoder.slots, strict=False):
            mine.copy_(theirs)
        decoder.slots = []
        self._owner = weakref.ref(decoder)

    def _first(self, kind: _Kind, latents_BFCHW: Tensor) -> Tensor:
        """Run a step as it is, since kernels are compiled and tuned now; then record it."""
        is_started = kind[1]
        state = self.state_of(self._slots) if is_started else self._empty
        raw_BTCHW, after = self._step(latents_BFCHW, state)
        frames_BTCHW = self._to_frames(raw_BTCHW)
        if not self._slots:
            self._slots = [slot.clone() for slot in after.slots]
        if not self.failure:
            self._record(kind, latents_BFCHW.clone())
        self._remember(after)
        return frames_BTCHW

    def _record(self, kind: _Kind, latents_BFCHW: Tensor) -> None:
        def call() -> Tensor:
            state = self.state_of(self._slots) if kind[1] else self._empty
            raw_BTCHW, after = self._step(latents_BFCHW, state)
            self._remember(after)
            return self._to_frames(raw_BTCHW)

        try:
            self._steps[kind] = latents_BFCHW, self._recorder.record(call)
        except RuntimeError as error:
            self.failure = " ".join(str(error).split())
            log.warning("the decoder runs without a graph: %s", self.failure)

    def _remember(self, state: Any) -> None:
        for mine, new in zip(self._slots, state.slots, strict=True):
            mine.copy_(new)


class CapturedDecoder:
    """The decoder of one video.

    Args:
        graphs: Shared by the videos of a model.

    Attributes:
        is_started: Whether it has decoded anything.
        graphs: Likewise.
        slots: What it remembers while another video's decoder has the buffers.
    """

    def __init__(self, graphs: DecoderGraphs) -> None:
        self.is_started = False
        self.slots: _Slots = []
        self.graphs = graphs

    def decode(self, latents_BFCHW: Tensor) -> Tensor:
        """Decode the next latents."""
        return self.graphs.decode(latents_BFCHW, self)

    def snapshot(self) -> Any:
        """What the decoder remembers, copied."""
        return self.graphs.state_of(self.graphs.slots_of(self))

    def restore(self, state: Any) -> None:
        """Go on from where ``snapshot`` was called."""
        self.graphs.forget(self)
        self.slots = list(state.slots)
        self.is_started = bool(self.slots)


class CaptureDecoder(Optimization):
    """Replays each step of the decoder as one CUDA graph, the VAE's or the tiny one's.

    Numerics: exact, the kernels are the same. What cannot be captured runs as it is, and the reason
    is logged once.

    Args:
        rehearses: Whether a rollout begins by decoding two blocks of nothing; if not, the first
            two blocks wait for the capture.
        required: Whether it is an error if there is no CUDA device.
    """

    wrap_order = WrapOrder.CAPTURE

    def __init__(self, rehearses: bool = True, required: bool = True) -> None:
        super().__init__(required)
        self.rehearses = rehearses
        self._graphs: DecoderGraphs | None = None
        self._key: object = None
        self._shape: object = None
        self._recorder: Callable[[torch.device], Recorder] = GraphRecorder
        self._seen = SeenOnce()

    def missing(self, device: torch.device) -> str | None:
        return None if device.type == "cuda" else f"a CUDA device, and this is {device.type}"

    def configure_rollout(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, spec: RolloutSpec
    ) -> RolloutSpec:
        self._shape = spec.geometry, spec.batch
        if not self.rehearses or not self.is_usable(pl_module):
            return spec
        return spec.rehearsed() if self._seen.is_new(pl_module, self._shape) else spec

    def configure_decoder(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, decoder: StreamingDecoder
    ) -> StreamingDecoder:
        if not isinstance(decoder, DecodingStream) or not self.is_usable(pl_module):
            return decoder
        # A bound method is a new object every time, and equal to the one before.
        key = decoder.step, self._shape
        if self._graphs is None or self._key != key:
            self._graphs = DecoderGraphs(decoder, self._recorder(device_of(decoder_of(pl_module))))
            self._key = key
        return CapturedDecoder(self._graphs)
