"""Prompts that are encoded before they are needed, and only once.

A prompt that is asked for while the video runs is encoded at once, in the thread that asks and in a
stream of its own, while the blocks before it are still being made. At the next block its embeddings
are there, and only the keys and values of the layers are left to compute.
"""

# Shape suffixes: B batch, M tokens of the prompt, E text width.

import threading
import weakref
from collections import OrderedDict
from typing import NamedTuple

import lightning.pytorch as pl
import torch
from torch import Tensor

from longlive.callbacks.optimization import Optimization, device_of
from longlive.errors import UserError
from longlive.rollout.hooks import EncodeText, WrapOrder
from longlive.rollout.state import RolloutState


class _Entry(NamedTuple):
    text_BME: Tensor
    ready: torch.cuda.Event | None


class PromptCache(Optimization):
    """Keeps the embeddings of the prompts that were used last, across the rollouts of a model.

    Numerics: exact.

    Args:
        prompts: How many are kept. A prompt takes 4 MB in bfloat16.
        ahead: Whether a prompt is encoded as soon as it is asked for.

    Attributes:
        hits: How often an embedding was there already.
    """

    wrap_order = WrapOrder.STREAM

    def __init__(self, prompts: int = 64, ahead: bool = True) -> None:
        super().__init__()
        if prompts < 1:
            raise UserError(f"a cache of {prompts} prompts keeps nothing: leave its overlay out")
        self.prompts = prompts
        self.ahead = ahead
        self.hits = 0
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._encode: EncodeText | None = None
        self._of: weakref.ref[pl.LightningModule] | None = None
        self._stream: torch.cuda.Stream | None = None
        self._lock = threading.RLock()

    def forget_prompts(self) -> None:
        """Empty the cache: every prompt is a cold one again."""
        with self._lock:
            self._entries.clear()

    def configure_text_encoder(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, encode: EncodeText
    ) -> EncodeText:
        with self._lock:
            if self._of is None or self._of() is not pl_module:
                self._entries.clear()
                self._of = weakref.ref(pl_module)
            self._encode = encode
        return self._get

    def on_prompt_request(
        self,
        trainer: pl.Trainer | None,
        pl_module: pl.LightningModule,
        state: RolloutState,
        prompt: str,
    ) -> None:
        if self.ahead:
            with self._lock, torch.no_grad():
                if prompt not in self._entries:
                    self._keep(prompt, self._encode_aside(prompt, device_of(pl_module)))

    def _get(self, prompt: str) -> Tensor:
        with self._lock:
            entry = self._entries.get(prompt)
            if entry is None:
                assert self._encode is not None
                text_BME = self._encode(prompt)
                self._keep(prompt, _Entry(text_BME, _now(text_BME)))
                return text_BME
            self.hits += 1
            self._entries.move_to_end(prompt)
        if entry.ready is not None:
            stream = torch.cuda.current_stream(entry.text_BME.device)
            stream.wait_event(entry.ready)
            entry.text_BME.record_stream(stream)
        return entry.text_BME

    def _encode_aside(self, prompt: str, device: torch.device) -> _Entry:
        assert self._encode is not None
        if device.type != "cuda":
            return _Entry(self._encode(prompt), None)
        self._stream = self._stream or torch.cuda.Stream(device)
        with torch.cuda.stream(self._stream):
            text_BME = self._encode(prompt)
            return _Entry(text_BME, _now(text_BME))

    def _keep(self, prompt: str, entry: _Entry) -> None:
        self._entries[prompt] = entry
        while len(self._entries) > self.prompts:
            self._entries.popitem(last=False)


def _now(x: Tensor) -> torch.cuda.Event | None:
    """A mark in the current stream, for other streams to wait for."""
    if not x.is_cuda:
        return None
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(x.device))
    return event
