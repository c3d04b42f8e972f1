"""The video file: whole at the end, and as whole as possible whenever the run ends earlier."""

import errno
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from longlive.errors import UserError
from longlive.video import h264
from longlive.video.atomic import part_path
from longlive.video.mp4 import Mp4Writer
from longlive.video.read import read_metadata, read_video

# Mean absolute error in levels; a smooth picture loses about one to color subsampling and crf 18.
CLOSE_LEVELS = 3.0


def clip(frames: int, height: int = 64, width: int = 96) -> np.ndarray:
    """A bar of changing color that moves over a gradient, ``[T, H, W, C]``; no two frames alike."""
    video = np.zeros((frames, height, width, 3), np.uint8)
    video[..., 0] = np.linspace(40, 200, width)
    video[..., 1] = np.linspace(30, 150, height)[:, None]
    for t in range(frames):
        left = (8 * t) % (width - 16)
        video[t, :, left : left + 16] = (220, 40, (60 + 9 * t) % 256)
    return video


def grain(frames: int) -> np.ndarray:
    """A still picture under film grain: kilobytes a frame, and no reason for extra key frames."""
    random = np.random.default_rng(0)
    still = random.integers(40, 215, (1, 64, 96, 3))
    return (still + random.integers(-40, 40, (frames, 64, 96, 3))).astype(np.uint8)


def level_error(a: torch.Tensor, b: np.ndarray) -> float:
    return float(np.abs(a.numpy().astype(int) - b.astype(int)).mean())


@pytest.mark.parametrize("layout", ["THWC", "TCHW", "tensor TCHW"])
def test_frames_come_back_in_order_number_and_color(tmp_path, layout):
    video = clip(30)
    given = video if layout == "THWC" else video.transpose(0, 3, 1, 2)
    given = torch.from_numpy(given.copy()) if layout.startswith("tensor") else given
    with Mp4Writer(tmp_path / "clip.mp4") as writer:
        for start in (0, 9, 21):
            writer.append(given[start : {0: 9, 9: 21, 21: 30}[start]])
    decoded = read_video(tmp_path / "clip.mp4")
    assert decoded.shape == video.shape
    assert level_error(decoded, video) < CLOSE_LEVELS
    for t in range(30):
        errors = [level_error(decoded[t], other) for other in video]
        assert int(np.argmin(errors)) == t


def test_saturated_colors_survive_in_programs_that_trust_the_color_tags(tmp_path):
    import av

    colors = [(220, 30, 40), (20, 200, 60), (30, 40, 230)]
    video = np.repeat(np.array(colors, np.uint8)[:, None, None], 32, 1).repeat(48, 2)
    with Mp4Writer(tmp_path / "clip.mp4") as writer:
        writer.append(video)
    with av.open(tmp_path / "clip.mp4") as container:
        context = container.streams.video[0].codec_context
        assert (context.colorspace, context.color_primaries, context.color_trc) == (1, 1, 1)
    decoded = read_video(tmp_path / "clip.mp4")[:, 16, 24]
    assert (decoded.int() - torch.tensor(colors)).abs().max() <= 3


def test_the_file_is_an_ordinary_mp4_of_16_fps_with_a_key_frame_a_second(tmp_path):
    import av

    with Mp4Writer(tmp_path / "clip.mp4") as writer:
        writer.append(clip(40))
    with av.open(tmp_path / "clip.mp4") as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert (stream.average_rate, stream.frames) == (16, 40)
        assert container.duration == 2_500_000
        packets = [packet for packet in container.demux(stream) if packet.size]
        keys = [index for index, packet in enumerate(packets) if packet.is_keyframe]
    assert keys == [0, 16, 32]


def test_metadata_and_chapters_come_back(tmp_path):
    about = {"prompts": [[0, "ein grüner Kreis"], [12, "☂"]], "seed": 7, "weights": "synthetic"}
    with Mp4Writer(tmp_path / "clip.mp4", title="ein grüner Kreis", metadata=about) as writer:
        writer.chapter("ein grüner Kreis")
        writer.append(clip(20))
        writer.chapter("ü" * 200)
        writer.append(clip(10))
        writer.chapter("planned for later, never reached", frame=99)
    found = read_metadata(tmp_path / "clip.mp4")
    assert found["title"] == "ein grüner Kreis"
    assert found["comment"] == about
    assert found["fps"] == 16
    assert found["chapters"] == [(0, "ein grüner Kreis"), (20, "ü" * 127)]


def test_odd_sides_grow_by_one_repeated_line(tmp_path):
    video = clip(3, height=33, width=51)
    with Mp4Writer(tmp_path / "clip.mp4") as writer:
        writer.append(video)
    decoded = read_video(tmp_path / "clip.mp4")
    assert decoded.shape == (3, 34, 52, 3)
    assert level_error(decoded[:, :33, :51], video) < CLOSE_LEVELS
    assert level_error(decoded[:, 33, :51], video[:, 32]) < 2 * CLOSE_LEVELS


def test_the_caller_may_reuse_its_buffer(tmp_path):
    video = clip(24)
    buffer = torch.empty(1, 64, 96, 3, dtype=torch.uint8)
    with Mp4Writer(tmp_path / "clip.mp4") as writer:
        for frame in video:
            buffer[0] = torch.from_numpy(frame)
            writer.append(buffer)
            buffer.zero_()
    assert level_error(read_video(tmp_path / "clip.mp4"), video) < CLOSE_LEVELS


def test_appending_does_not_wait_for_the_encoder(tmp_path, monkeypatch):
    encode = h264.H264File.encode
    pause = 0.3

    def slow(self, x_THWC):
        time.sleep(pause)
        encode(self, x_THWC)

    monkeypatch.setattr(h264.H264File, "encode", slow)
    writer = Mp4Writer(tmp_path / "clip.mp4")
    start = time.monotonic()
    for _ in range(3):
        writer.append(clip(2))
    assert time.monotonic() - start < pause
    writer.close()
    assert len(read_video(tmp_path / "clip.mp4")) == 6


def test_a_previous_file_stays_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"previous")
    writer = Mp4Writer(path)
    writer.append(clip(20))
    assert path.read_bytes() == b"previous"
    assert writer.close() == path
    assert len(read_video(path)) == 20
    assert list(tmp_path.iterdir()) == [path]


def test_an_exception_in_the_rollout_keeps_every_frame_made_before_it(tmp_path):
    def roll_out() -> None:
        with Mp4Writer(tmp_path / "clip.mp4", title="cut short") as writer:
            writer.append(clip(37))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        roll_out()
    assert len(read_video(tmp_path / "clip.mp4")) == 37
    assert read_metadata(tmp_path / "clip.mp4")["title"] == "cut short"


def test_aborting_without_a_frame_leaves_the_folder_as_it_was(tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"previous")
    assert Mp4Writer(path).abort() is None
    assert path.read_bytes() == b"previous"
    assert list(tmp_path.iterdir()) == [path]


def test_closing_without_a_frame_says_so(tmp_path):
    writer = Mp4Writer(tmp_path / "clip.mp4")
    with pytest.raises(UserError, match="no frame was made"):
        writer.close()
    assert list(tmp_path.iterdir()) == []


def test_closing_and_aborting_twice_changes_nothing(tmp_path):
    writer = Mp4Writer(tmp_path / "clip.mp4")
    writer.append(clip(5))
    assert writer.close() == writer.close() == writer.abort() == tmp_path / "clip.mp4"
    with pytest.raises(ValueError, match="after finish"):
        writer.append(clip(1))


def test_frames_of_another_size_are_refused_and_those_before_them_kept(tmp_path):
    writer = Mp4Writer(tmp_path / "clip.mp4")
    writer.append(clip(7))
    writer.append(clip(2, height=32))
    with pytest.raises(ValueError, match="96x32 pixels do not go into a video of 96x64"):
        writer.close()
    assert len(read_video(tmp_path / "clip.mp4")) == 7


@pytest.mark.parametrize(
    ("frames", "error"),
    [
        (np.zeros((2, 8, 8, 3), np.float32), TypeError),
        (torch.zeros(2, 3, 8, 8), TypeError),
        (np.zeros((8, 8, 3), np.uint8), ValueError),
        (np.zeros((2, 8, 8, 4), np.uint8), ValueError),
    ],
)
def test_anything_but_8_bit_rgb_frames_is_refused_at_once(tmp_path, frames, error):
    with pytest.raises(error, match="frames must be"):
        Mp4Writer(tmp_path / "clip.mp4").append(frames)


KILLED = """
import sys, time
from pathlib import Path
import numpy as np
from longlive.video.mp4 import Mp4Writer

writer = Mp4Writer(Path(sys.argv[1]), title="killed", metadata={"seed": 7})
writer.append(np.load(sys.argv[2]))
print("appended", flush=True)
while True:
    time.sleep(1)
"""


def test_a_killed_process_leaves_a_file_with_all_but_the_last_frame(tmp_path):
    path, frames = tmp_path / "clip.mp4", tmp_path / "frames.npy"
    np.save(frames, grain(48))
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path), str(frames)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"appended\n"
        _wait_for_frames(part_path(path), 47)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    assert not path.exists()
    decoded = read_video(part_path(path))
    with Mp4Writer(tmp_path / "whole.mp4") as writer:
        writer.append(grain(48))
    assert torch.equal(decoded, read_video(tmp_path / "whole.mp4")[:47])
    found = read_metadata(part_path(path))
    assert (found["title"], found["comment"]) == ("killed", {"seed": 7})


def _wait_for_frames(path: Path, frames: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            if len(read_video(path)) >= frames:
                return
        except UserError:  # not even a header yet
            pass
        time.sleep(0.05)
    pytest.fail(f"{path.name} never had {frames} frames")


def test_a_file_cut_anywhere_still_gives_the_frames_before_the_cut(tmp_path):
    path = tmp_path / "clip.mp4"
    writer = Mp4Writer(path)
    writer.append(grain(16))
    _wait_for_frames(part_path(path), 15)
    data = part_path(path).read_bytes()
    writer.close()
    whole = read_video(path)
    for share in (0.4, 0.7, 0.9):
        cut = tmp_path / f"cut-{share}.mp4"
        cut.write_bytes(data[: int(len(data) * share)])
        decoded = read_video(cut)
        assert len(decoded) >= int(16 * share) - 2
        assert torch.equal(decoded[:-1], whole[: len(decoded) - 1])


class _FullDisk:
    """Stands in for the file of ``_PartFile``: takes ``room`` bytes, then refuses."""

    def __init__(self, file, room: int, code: int, refusals: float) -> None:
        self._file, self._room, self._code, self._refusals = file, room, code, refusals

    def write(self, data) -> int:
        room = self._room - self._file.tell()
        if room <= 0 and self._refusals > 0:
            self._refusals -= 1
            raise OSError(self._code, os.strerror(self._code))
        if room <= 0:
            return self._file.write(data)
        return self._file.write(data[:room])

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        self._file.close()

    def __getattr__(self, name):
        return getattr(self._file, name)


def full_disk(monkeypatch, room: int, code: int = errno.ENOSPC, refusals: float = math.inf) -> None:
    init = h264._PartFile.__init__

    def patched(self, path):
        init(self, path)
        self._file = _FullDisk(self._file, room, code, refusals)

    monkeypatch.setattr(h264._PartFile, "__init__", patched)


def test_a_full_disk_keeps_the_frames_that_fit_and_says_how_many(tmp_path, monkeypatch):
    path = tmp_path / "clip.mp4"
    full_disk(monkeypatch, room=100_000)
    writer = Mp4Writer(path)

    def write_until_it_fails() -> None:
        for frame in grain(200):
            writer.append(frame[None])

    with pytest.raises(UserError, match="no space left on device") as caught:
        write_until_it_fails()
    decoded = read_video(path)
    assert 5 < len(decoded) < 50
    assert f"its first {len(decoded)} frames are kept" in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError):
        writer.close()
    assert writer.abort() == path
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("refusals", [math.inf, 1])
def test_every_frame_kept_on_a_full_disk_is_undamaged(tmp_path, monkeypatch, refusals):
    with Mp4Writer(tmp_path / "whole.mp4") as writer:
        writer.append(grain(30))
    whole = read_video(tmp_path / "whole.mp4")
    full_disk(monkeypatch, room=77_777, refusals=refusals)
    writer = Mp4Writer(tmp_path / "cut.mp4")
    writer.append(grain(30))
    with pytest.raises(UserError):
        writer.close()
    decoded = read_video(tmp_path / "cut.mp4")
    assert 3 < len(decoded) < 30
    assert torch.equal(decoded, whole[: len(decoded)])


def test_a_disk_that_fills_up_with_the_index_still_leaves_a_file_that_plays(tmp_path, monkeypatch):
    path = tmp_path / "clip.mp4"
    with Mp4Writer(path) as writer:
        writer.append(grain(12))
    full_disk(monkeypatch, room=path.stat().st_size - 50)
    writer = Mp4Writer(path)
    writer.append(grain(12))
    with pytest.raises(UserError, match="frames are kept"):
        writer.close()
    assert len(read_video(path)) >= 11


def test_a_disk_that_is_full_from_the_start_leaves_the_previous_file(tmp_path, monkeypatch):
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"previous")
    full_disk(monkeypatch, room=40)
    writer = Mp4Writer(path)
    writer.append(grain(3))
    with pytest.raises(UserError, match="no frame could be kept"):
        writer.close()
    assert writer.abort() is None
    assert path.read_bytes() == b"previous"
    assert list(tmp_path.iterdir()) == [path]


def test_other_refusals_of_the_file_system_are_named_too(tmp_path, monkeypatch):
    full_disk(monkeypatch, room=40_000, code=errno.EFBIG)
    writer = Mp4Writer(tmp_path / "clip.mp4")
    writer.append(grain(30))
    with pytest.raises(UserError, match="file too large, its first"):
        writer.close()


def test_a_name_that_cannot_be_written_is_refused_before_any_frame_is_made(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.mp4").mkdir()
    for bad in (tmp_path / "file" / "clip.mp4", tmp_path / "folder.mp4", tmp_path / "clip.avi"):
        with pytest.raises(UserError):
            Mp4Writer(bad)


def test_missing_folders_are_made(tmp_path):
    with Mp4Writer(tmp_path / "a" / "b" / "clip.mp4") as writer:
        writer.append(clip(1))
    assert len(read_video(tmp_path / "a" / "b" / "clip.mp4")) == 1


@pytest.mark.parametrize("content", [None, b"", b"not a video" * 100])
def test_reading_what_is_no_video_says_so(tmp_path, content):
    path = tmp_path / "clip.mp4"
    if content is not None:
        path.write_bytes(content)
    for read in (read_video, read_metadata):
        with pytest.raises(UserError, match=r"clip\.mp4"):
            read(path)
