"""Latents in one safetensors file."""

import pytest
import torch

from longlive.errors import UserError
from longlive.video.latents import LatentWriter, read_latents


def test_blocks_come_back_as_one_video_in_their_own_precision(tmp_path):
    latents = torch.randn(2, 9, 4, 5, 6, dtype=torch.bfloat16)
    buffer = torch.empty(2, 3, 4, 5, 6, dtype=torch.bfloat16)
    writer = LatentWriter(tmp_path / "new" / "clip.safetensors", {"seed": "7"})
    for block in latents.split(3, dim=1):
        buffer.copy_(block)
        writer.append(buffer)
    assert writer.latent_frames == 9
    found, metadata = read_latents(writer.close())
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, latents)
    assert metadata == {"seed": "7"}


def test_nothing_is_at_the_name_before_the_end(tmp_path):
    path = tmp_path / "clip.safetensors"
    path.write_bytes(b"previous")
    writer = LatentWriter(path)
    writer.append(torch.zeros(1, 3, 4, 5, 6))
    assert path.read_bytes() == b"previous"
    writer.close()
    assert list(tmp_path.iterdir()) == [path]
    assert read_latents(path)[0].shape == (1, 3, 4, 5, 6)


@pytest.mark.parametrize(
    "wrong",
    [
        torch.zeros(2, 3, 4, 5, 6),
        torch.zeros(1, 3, 4, 5, 7),
        torch.zeros(1, 3, 4, 5, 6, dtype=torch.bfloat16),
        torch.zeros(3, 4, 5, 6),
    ],
)
def test_a_block_that_does_not_continue_the_video_is_refused(tmp_path, wrong):
    writer = LatentWriter(tmp_path / "clip.safetensors")
    writer.append(torch.zeros(1, 3, 4, 5, 6))
    with pytest.raises(ValueError, match="latents"):
        writer.append(wrong)


def test_bad_names_and_bad_files_are_user_errors(tmp_path):
    with pytest.raises(UserError, match=r"\.safetensors"):
        LatentWriter(tmp_path / "clip.pt")
    with pytest.raises(UserError, match="longer"):
        LatentWriter(tmp_path / "clip.safetensors").close()
    with pytest.raises(UserError, match="no file of latents"):
        read_latents(tmp_path / "clip.safetensors")
    (tmp_path / "clip.safetensors").write_bytes(b"garbage" * 9)
    with pytest.raises(UserError, match="holds no latents"):
        read_latents(tmp_path / "clip.safetensors")
