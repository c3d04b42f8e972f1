"""The record beside a video."""

import errno
from pathlib import Path

import pytest
import torch

import longlive
from longlive.errors import UserError
from longlive.geometry import Geometry
from longlive.video.sidecar import VideoRecord, read_sidecar, sidecar_path, write_sidecar

RECORD = VideoRecord(
    prompts=((0, "ein Kreis, grün"), (42, "ein Quadrat")),
    seed=7,
    geometry=Geometry(height_px=64, width_px=96),
    weights_kind="synthetic",
    weights_source="random, seed 0",
    latent_frames=120,
    timings={"first_frame_ms": 812.5},
    options={"window_latent_frames": 12},
)


def test_the_record_says_what_was_shown_when_and_by_what(tmp_path):
    assert write_sidecar(tmp_path / "clip.mp4", RECORD) == tmp_path / "clip.json"
    found = read_sidecar(tmp_path / "clip.mp4")
    assert found["prompts"] == [
        {"latent_frame": 0, "frame": 0, "prompt": "ein Kreis, grün"},
        {"latent_frame": 42, "frame": 165, "prompt": "ein Quadrat"},
    ]
    assert (found["seed"], found["latent_frames"], found["frames"], found["fps"]) == (
        7,
        120,
        477,
        16,
    )
    assert found["weights"] == {"kind": "synthetic", "source": "random, seed 0"}
    assert found["versions"] == {"longlive": longlive.__version__, "torch": torch.__version__}
    assert found["geometry"]["width_px"] == 96
    assert found["timings"] == {"first_frame_ms": 812.5}
    assert found["options"] == {"window_latent_frames": 12}


def test_the_record_of_a_folder_of_frames_lies_beside_the_folder():
    assert sidecar_path(Path("out/clip.v2")) == Path("out/clip.v2.json")
    assert sidecar_path(Path("out/clip.v2.mp4")) == Path("out/clip.v2.json")


def test_a_failed_write_leaves_the_previous_record_and_no_rest(tmp_path, monkeypatch):
    write_sidecar(tmp_path / "clip.mp4", RECORD)
    before = (tmp_path / "clip.json").read_text()
    write_bytes = Path.write_bytes

    def fail_halfway(self: Path, data: bytes) -> int:
        write_bytes(self, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail_halfway)
    with pytest.raises(UserError, match=r"clip\.json: no space left on device; free some space"):
        write_sidecar(tmp_path / "clip.mp4", RECORD)
    assert (tmp_path / "clip.json").read_text() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_a_missing_or_damaged_record_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="no record"):
        read_sidecar(tmp_path / "clip.mp4")
    (tmp_path / "clip.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        read_sidecar(tmp_path / "clip.mp4")
