"""Several videos in one picture."""

import builtins
from pathlib import Path

import av
import numpy as np
import pytest

from longlive.video.contact_sheet import contact_sheet, save_contact_sheet

GAP = 4


def shades(frames: int, height: int = 16, width: int = 24) -> np.ndarray:
    """Frame ``t`` has the brightness ``t`` everywhere."""
    return np.broadcast_to(
        np.arange(frames, dtype=np.uint8)[:, None, None, None], (frames, height, width, 3)
    )


def picture(data: bytes, tmp_path: Path) -> np.ndarray:
    (tmp_path / "sheet.png").write_bytes(data)
    with av.open(tmp_path / "sheet.png") as container:
        return next(container.decode(video=0)).to_ndarray(format="rgb24")


def test_a_row_runs_evenly_from_the_first_frame_to_the_last(tmp_path):
    sheet = picture(contact_sheet([shades(101)], columns=5), tmp_path)
    assert sheet.shape == (16 + 2 * GAP, 5 * (24 + GAP) + GAP, 3)
    centers = [int(sheet[GAP + 8, GAP + 12 + i * (24 + GAP), 0]) for i in range(5)]
    assert centers == [0, 25, 50, 75, 100]
    assert (sheet[:, :GAP] == 255).all()


def test_each_video_is_a_row_scaled_to_the_width_of_the_first(tmp_path):
    sheet = picture(contact_sheet([shades(3), 50 + shades(3, 32, 48)], columns=3), tmp_path)
    assert sheet.shape[0] == 2 * (16 + 2 * GAP)
    assert int(sheet[16 + 3 * GAP + 8, GAP + 12, 0]) == 50


def test_a_short_video_leaves_the_rest_of_its_row_white(tmp_path):
    sheet = picture(contact_sheet([shades(2)], columns=4), tmp_path)
    assert (sheet[:, 2 * (24 + GAP) + GAP :] == 255).all()
    assert int(sheet[GAP, 24 + 2 * GAP, 0]) == 1


def test_captions_stand_above_their_rows(tmp_path):
    pytest.importorskip("PIL")
    videos = [shades(3, 16, 96)] * 2
    plain = picture(contact_sheet(videos, columns=2), tmp_path)
    sheet = picture(contact_sheet(videos, columns=2, captions=["one", "two"]), tmp_path)
    strip = (sheet.shape[0] - plain.shape[0]) // 2
    assert strip > 10
    assert (sheet[:strip] < 100).any()
    assert np.array_equal(sheet[strip : strip + 24], plain[:24])


def test_without_pillow_there_are_no_captions(tmp_path, monkeypatch):
    real_import = builtins.__import__

    def no_pillow(name, *args, **kwargs):
        if name.startswith("PIL"):
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_pillow)
    assert contact_sheet([shades(3)], captions=["one"]) == contact_sheet([shades(3)])


def test_the_sheet_is_saved_whole(tmp_path):
    path = save_contact_sheet(tmp_path / "new" / "sheet.png", [shades(3)], columns=2)
    assert path.read_bytes() == contact_sheet([shades(3)], columns=2)


def test_nothing_to_show_is_an_error():
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([])
    with pytest.raises(ValueError, match="without frames"):
        contact_sheet([shades(0)])
    with pytest.raises(ValueError, match="captions"):
        contact_sheet([shades(1)], captions=["a", "b"])
