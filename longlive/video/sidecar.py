"""What a video is and how it was made, as JSON beside it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from longlive import __version__
from longlive.errors import UserError
from longlive.geometry import FPS, Geometry, frames_of
from longlive.video.atomic import write_bytes


@dataclass(frozen=True, slots=True)
class VideoRecord:
    """How a video was made.

    Attributes:
        prompts: Latent frame from which each prompt was active, and the prompt, in order.
        seed: The video's seed.
        geometry: Size of the video and of its latents.
        weights_kind: What made it, in a word: ``"synthetic"``, ``"embedded"``, ``"released"``.
        weights_source: Where the weights came from: a file, a repository.
        latent_frames: Length; ``None`` while it is not known.
        timings: Seconds, milliseconds or rates, with the unit in the key.
        options: Whatever else is needed to make it again.
    """

    prompts: tuple[tuple[int, str], ...]
    seed: int
    geometry: Geometry
    weights_kind: str
    weights_source: str = ""
    latent_frames: int | None = None
    timings: Mapping[str, float] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with frames beside latent frames and the versions in use."""
        length = self.latent_frames
        return {
            "prompts": [
                {"latent_frame": start, "frame": frames_of(start), "prompt": prompt}
                for start, prompt in self.prompts
            ],
            "seed": self.seed,
            "latent_frames": length,
            "frames": None if length is None else frames_of(length),
            "fps": FPS,
            "geometry": asdict(self.geometry),
            "weights": {"kind": self.weights_kind, "source": self.weights_source},
            "versions": {"longlive": __version__, "torch": str(torch.__version__)},
            "timings": dict(self.timings),
            "options": dict(self.options),
        }


def sidecar_path(video: Path) -> Path:
    """``clip.json`` beside ``clip.mp4``; for a folder of frames ``clip``, beside the folder."""
    return video.with_name(f"{video.stem if video.suffix == '.mp4' else video.name}.json")


def write_sidecar(video: Path, record: VideoRecord) -> Path:
    """Write ``record`` beside ``video`` and return the file.

    Raises:
        UserError: If it cannot be written; a previous file stays.
    """
    path = sidecar_path(video)
    text = json.dumps(record.as_dict(), indent=2, ensure_ascii=False)
    write_bytes(path, f"{text}\n".encode())
    return path


def read_sidecar(video: Path) -> dict[str, Any]:
    """Read the JSON beside ``video``.

    Raises:
        UserError: If it is missing or damaged.
    """
    path = sidecar_path(video)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{video} has no record at {path}; make the video again") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); make the video again") from error
