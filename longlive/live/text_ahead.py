"""Encodes a prompt in a thread of its own while the block at hand is made, or when it is wanted."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

_KEPT_PROMPTS = 32


class _Encoded(NamedTuple):
    text_BME: Tensor
    done: torch.cuda.Event | None


class TextAhead:
    """Gives the embeddings of a prompt, at once if it was announced in time.

    Of several announcements that wait the latest is worked on: a thousand prompts in a second cost
    a few encodings. On a GPU the encoder runs in a stream of its own.

    Args:
        encode: Embeddings ``[1, M, E]`` of a prompt.
        device: Where it runs.
        has_thread: Whether there is one. Without, a prompt is encoded when it is wanted, by the
            thread that wants it: on a CPU a second thread that computes slows the first down.
    """

    def __init__(
        self, encode: Callable[[str], Tensor], device: torch.device, *, has_thread: bool = True
    ) -> None:
        self._encode = encode
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._kept: OrderedDict[str, _Encoded] = OrderedDict()
        self._wanted: str | None = None
        self._at_work: str | None = None
        self._is_closed = False
        self._change = threading.Condition()
        self._thread: threading.Thread | None = None
        if has_thread:
            self._thread = threading.Thread(target=self._run, name="encode prompts", daemon=True)
            self._thread.start()

    def announce(self, prompt: str) -> None:
        """A prompt will be wanted; return at once."""
        if self._thread is None:
            return
        with self._change:
            self._wanted = prompt
            self._change.notify_all()

    def __call__(self, prompt: str) -> Tensor:
        """Embeddings of a prompt; the current stream may use them."""
        with self._change:
            while self._at_work == prompt:
                self._change.wait()
            found = self._kept.get(prompt)
            if found is None and self._wanted == prompt:
                # It is faster to do it here than to wait for the thread to wake up.
                self._wanted = None
        if found is None:
            found = self._work(prompt)
            self._keep(prompt, found)
        if found.done is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(found.done)
            found.text_BME.record_stream(stream)
        return found.text_BME

    def close(self) -> None:
        """End the thread."""
        with self._change:
            self._is_closed = True
            self._change.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._change:
                while self._wanted is None and not self._is_closed:
                    self._change.wait()
                if self._is_closed:
                    return
                prompt, self._wanted = self._wanted, None
                if prompt is None or prompt in self._kept:
                    continue
                self._at_work = prompt
            found = self._try(prompt)
            with self._change:
                self._at_work = None
                if found is not None:
                    self._keep(prompt, found)
                self._change.notify_all()

    def _try(self, prompt: str) -> _Encoded | None:
        try:
            return self._work(prompt)
        except Exception:
            # Whoever wants the prompt does it again, and gets the error.
            return None

    @torch.no_grad()
    def _work(self, prompt: str) -> _Encoded:
        if self._stream is None:
            return _Encoded(self._encode(prompt), None)
        with torch.cuda.stream(self._stream):
            text_BME = self._encode(prompt)
            done = torch.cuda.Event()
            done.record(self._stream)
        return _Encoded(text_BME, done)

    def _keep(self, prompt: str, found: _Encoded) -> None:
        with self._change:
            self._kept[prompt] = found
            self._kept.move_to_end(prompt)
            while len(self._kept) > _KEPT_PROMPTS:
                self._kept.popitem(last=False)
