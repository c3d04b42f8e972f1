"""Folders of PNG files."""

import errno
from pathlib import Path

import av
import numpy as np
import pytest

from longlive.errors import UserError
from longlive.video.png import PngWriter, encode_png


def noise(frames: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 255, (frames, 20, 35, 3), dtype=np.uint8)


def decode(path: Path) -> np.ndarray:
    with av.open(path) as container:
        return next(container.decode(video=0)).to_ndarray(format="rgb24")


def test_every_frame_comes_back_exactly(tmp_path):
    video = noise(21)
    with PngWriter(tmp_path / "clip") as writer:
        writer.append(video[:13].transpose(0, 3, 1, 2))
        writer.append(video[13:])
    files = sorted((tmp_path / "clip").iterdir())
    assert [file.name for file in files] == [f"frame_{i:06d}.png" for i in range(21)]
    for file, frame in zip(files, video, strict=True):
        assert np.array_equal(decode(file), frame)


def test_a_shorter_second_run_leaves_no_frame_of_the_first_and_no_other_file_is_touched(tmp_path):
    (tmp_path / "frame_notes.png").write_text("mine")
    for frames in (9, 4):
        with PngWriter(tmp_path) as writer:
            writer.append(noise(frames))
    assert len(list(tmp_path.glob("frame_0*.png"))) == 4
    assert (tmp_path / "frame_notes.png").read_text() == "mine"


def test_aborting_at_once_keeps_the_frames_of_the_run_before(tmp_path):
    with PngWriter(tmp_path) as writer:
        writer.append(noise(3))
    assert PngWriter(tmp_path).abort() is None
    assert len(list(tmp_path.glob("*.png"))) == 3


def test_a_full_disk_is_one_line_with_the_folder_and_the_frames_kept(tmp_path, monkeypatch):
    write_bytes = Path.write_bytes

    def write_six(self: Path, data: bytes) -> int:
        if "000006" in self.name:
            write_bytes(self, data[:10])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_bytes(self, data)

    monkeypatch.setattr(Path, "write_bytes", write_six)
    writer = PngWriter(tmp_path / "clip")
    writer.append(noise(9))
    with pytest.raises(UserError, match="no space left on device, its first 6 frames are kept"):
        writer.close()
    assert len(list((tmp_path / "clip").iterdir())) == 6


def test_png_bytes_are_read_by_other_programs(tmp_path):
    image = pytest.importorskip("PIL.Image")
    frame = noise(1)[0]
    (tmp_path / "x.png").write_bytes(encode_png(frame))
    with image.open(tmp_path / "x.png") as opened:
        assert np.array_equal(np.asarray(opened), frame)
