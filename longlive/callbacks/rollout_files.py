"""The files of one rollout: opened at its first prompt, complete at its end."""

# Shape suffixes: B batch, F latent frames, T frames, C channels, H W rows and columns.

import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from einops import rearrange
from torch import Tensor

from longlive.errors import UserError
from longlive.geometry import FPS, frames_of, latent_frames_in
from longlive.rollout.job import RolloutJob
from longlive.rollout.state import RolloutSpec
from longlive.video.frames import to_uint8
from longlive.video.recording import Recording
from longlive.video.sidecar import VideoRecord
from longlive.video.to_host import HostTransfer

# Enough that the device never waits for the host, and no more: a prompt that is typed takes effect
# behind the blocks that the host has already queued.
_BLOCKS_UNDER_WAY = 2


class OutputListener(Protocol):
    """Is told how frames leave the device."""

    def sending(self) -> AbstractContextManager[None]:
        """Held while a block's frames are converted and their copy is queued, in the rollout."""
        ...

    def writing(self) -> AbstractContextManager[None]:
        """Held while a block's frames are handed to the encoders, in a thread of its own."""
        ...


class NobodyListens:
    """Nobody is told."""

    def sending(self) -> AbstractContextManager[None]:
        """Do nothing."""
        return nullcontext()

    def writing(self) -> AbstractContextManager[None]:
        """Do nothing."""
        return nullcontext()


class RolloutFiles:
    """One set of files for each video of a rollout's batch.

    Args:
        spec: What was asked for.
        device: Where the rollout runs.
        job: Which video it is.
        listener: Is told how the frames get there.

    Attributes:
        job: Likewise.
        recordings: One for each video, once opened.
        summary: What became of them, in a line; after ``end``.
    """

    def __init__(
        self, spec: RolloutSpec, device: torch.device, job: RolloutJob, listener: OutputListener
    ) -> None:
        self.job = job
        self.recordings: list[Recording] = []
        self.summary = ""
        self._spec = spec
        self._device = device
        self._listener = listener
        self._prompts: list[tuple[int, str]] = []
        self._transfer: HostTransfer | None = None
        self._start_s = time.perf_counter()
        self._first_frame_s = 0.0

    @property
    def kept(self) -> list[Path]:
        """The MP4 files that there are, after ``end``."""
        return [recording.path for recording in self.recordings if recording.is_kept]

    def switch_prompt(self, latent_frame: int, prompt: str) -> None:
        """Note that ``prompt`` is active from ``latent_frame`` on."""
        self._prompts.append((latent_frame, prompt))
        for recording in self.recordings:
            recording.chapter(prompt, frames_of(latent_frame))

    def open(self, paths: list[Path], *, crf: int, png: bool, latents: bool) -> None:
        """Create the files; the first prompt is known.

        Args:
            paths: One MP4 for each video of the batch.
            crf: Quality of x264.
            png: Whether frames also become PNG files.
            latents: Whether latents are kept.

        Raises:
            UserError: If a file cannot be created.
        """
        record = self._record(None, {}, _options(self._spec))
        for path in paths:
            recording = Recording(path, record, crf=crf, png=png, latents=latents)
            self.recordings.append(recording)
            for latent_frame, prompt in self._prompts:
                recording.chapter(prompt, frames_of(latent_frame))
        self._transfer = HostTransfer(capacity=_BLOCKS_UNDER_WAY, name="frames to host")

    def send_latents(self, x0_BFCHW: Tensor) -> None:
        """Queue a block's clean latents."""
        self._opened.send(x0_BFCHW, self._receive_latents)

    def send_frames(self, frames_BTCHW: Tensor) -> None:
        """Queue frames in [0, 1]; they become 8-bit where they are."""
        with self._listener.sending():
            x_BTCHW = to_uint8(frames_BTCHW.detach())
            self._opened.send(rearrange(x_BTCHW, "B T C H W -> B T H W C"), self._receive_frames)

    def end(self, failure: BaseException | None) -> list[Exception]:
        """Complete all files with what was made, and write the sidecars.

        Args:
            failure: What ended the rollout before its time, if anything did.

        Returns:
            What could not be written, each error once.
        """
        errors: list[Exception] = []
        try:
            if self._transfer is not None:
                self._transfer.finish()
        except Exception as error:
            errors.append(error)
        for recording in self.recordings:
            errors += recording.close()
        if self.kept:
            errors += self._describe(failure or next(iter(errors), None), is_whole=not errors)
        return list({id(error): error for error in errors}.values())

    @property
    def _opened(self) -> HostTransfer:
        assert self._transfer is not None, "open() was not called"
        return self._transfer

    def _receive_latents(self, x0_BFCHW: Tensor) -> None:
        for recording, latents in zip(self.recordings, x0_BFCHW.split(1), strict=True):
            recording.append_latents(latents)

    def _receive_frames(self, frames_BTHWC: Tensor) -> None:
        self._first_frame_s = self._first_frame_s or time.perf_counter() - self._start_s
        with self._listener.writing():
            for recording, frames in zip(self.recordings, frames_BTHWC, strict=True):
                recording.append_frames(frames)

    def _describe(self, failure: BaseException | None, *, is_whole: bool) -> list[Exception]:
        seconds = time.perf_counter() - self._start_s
        frames = self.recordings[0].frames
        timings = {
            "first_frame_ms": round(1000 * self._first_frame_s, 3),
            "fps": round(frames / seconds, 3),
            "seconds": round(seconds, 3),
        }
        ended = self._ended(frames, failure)
        self.summary = (
            f"{frames} frames, {frames / FPS:.1f} s of video, in {seconds:.1f} s "
            f"({timings['fps']:.1f} frames/s, the first after {timings['first_frame_ms']:.0f} ms)"
            + ("" if ended == "complete" else f"; {ended}")
        )
        # A writer that failed has dropped frames, and nobody has counted which.
        length = latent_frames_in(frames) if is_whole else None
        options = {**_options(self._spec), "ended": ended, "device": _device_name(self._device)}
        record = self._record(length, timings, options)
        errors: list[Exception] = []
        for recording in self.recordings:
            try:
                if recording.is_kept:
                    recording.describe(record)
            except UserError as error:
                errors.append(error)
        return errors

    def _ended(self, frames: int, failure: BaseException | None) -> str:
        if isinstance(failure, Exception):
            return f"failed: {type(failure).__name__}"
        planned = self._spec.latent_frames
        return "complete" if planned and frames >= frames_of(planned) else "stopped"

    def _record(
        self, latent_frames: int | None, timings: dict[str, float], options: dict[str, Any]
    ) -> VideoRecord:
        # A prompt that came into force for a block that was never shown is not in the video.
        shown = [
            prompt for prompt in self._prompts if latent_frames is None or prompt[0] < latent_frames
        ]
        return VideoRecord(
            prompts=tuple(shown),
            seed=self.job.seed,
            geometry=self._spec.geometry,
            weights_kind=self.job.weights_kind,
            weights_source=self.job.weights_source,
            latent_frames=latent_frames,
            timings=timings,
            options=options,
        )


def _options(spec: RolloutSpec) -> dict[str, Any]:
    return {
        "planned_latent_frames": spec.latent_frames,
        "batch": spec.batch,
        "window_latent_frames": spec.window_latent_frames,
        "sink_latent_frames": spec.sink_latent_frames,
        "keeps_sink": spec.keeps_sink,
        "positions": spec.positions,
        "denoising_steps": len(spec.schedule.sigmas),
        "timesteps": list(spec.schedule.timesteps),
        "sampler": spec.sampler,
        "guidance": spec.guidance,
        "context_sigma": spec.context_sigma,
    }


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
