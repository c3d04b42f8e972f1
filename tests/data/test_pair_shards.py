"""ODE pairs in shards: whole, damaged, and of different kinds."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from longlive.data.pair_shards import OdePairs, PairShards, shard_path, write_shard
from longlive.errors import UserError

SIGMAS = [1.0, 0.5, 0.0]


def write(folder: Path, number: int = 0, pairs: int = 3, sigmas=SIGMAS, scale: float = 1.0) -> Path:
    generator = torch.Generator().manual_seed(number)
    states = scale * torch.randn(pairs, len(sigmas), 4, 2, 2, 3, generator=generator)
    path = shard_path(folder, number)
    write_shard(path, states, [f"{number}.{row}" for row in range(pairs)], sigmas)
    return path


def test_pairs_come_back_with_their_prompts_and_levels(tmp_path):
    write(tmp_path, 0)
    write(tmp_path, 1, pairs=2)
    shards = PairShards(tmp_path)
    assert len(shards) == 5
    batch = shards.read([4, 0])
    assert batch.prompts == ("1.1", "0.0")
    assert batch.states.shape == (2, 3, 4, 2, 2, 3)
    assert batch.states.dtype == torch.float32
    expected = torch.randn(2, 3, 4, 2, 2, 3, generator=torch.Generator().manual_seed(1))[1]
    assert torch.allclose(batch.states[0], expected, atol=2e-3)
    assert batch.sigmas.tolist() == SIGMAS


def test_a_data_module_gives_batches(tmp_path):
    write(tmp_path, 0, pairs=4)
    data = OdePairs(tmp_path, batch_size=2)
    data.setup("fit")
    assert [batch.states.shape[0] for batch in data.train_dataloader()] == [2, 2]


def one_line(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        PairShards(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_shard_that_was_cut_short_is_named(tmp_path):
    write(tmp_path, 0)
    path = write(tmp_path, 1)
    path.write_bytes(path.read_bytes()[:-40])
    assert f"{path} is damaged" in one_line(tmp_path)


def test_a_shard_whose_header_is_garbage_is_named(tmp_path):
    path = write(tmp_path, 0)
    path.write_bytes(b"\xff" * 200)
    assert f"{path} is damaged" in one_line(tmp_path)


def test_a_shard_without_prompts_is_named(tmp_path):
    path = shard_path(tmp_path, 0)
    save_file({"states": torch.zeros(1, 3, 4, 2, 2, 3)}, path)
    assert f"{path} is damaged" in one_line(tmp_path)


def test_a_shard_with_values_that_are_not_finite_is_named_when_it_is_read(tmp_path):
    path = write(tmp_path, 0, scale=float("inf"))
    with pytest.raises(UserError, match="pair 1 has values that are not finite") as error:
        PairShards(tmp_path).read([1])
    assert str(path) in str(error.value)


def test_a_shard_that_disappears_while_training_is_named(tmp_path):
    path = write(tmp_path, 0)
    shards = PairShards(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match="is damaged"):
        shards.read([0])


def test_shards_of_different_kinds_do_not_mix(tmp_path):
    write(tmp_path, 0)
    write(tmp_path, 1, sigmas=[1.0, 0.0])
    assert "another shape or other noise levels" in one_line(tmp_path)


def test_a_folder_without_pairs_says_how_to_make_them(tmp_path):
    assert "tools/make_ode_pairs.py" in one_line(tmp_path)


def test_nothing_is_left_of_a_shard_that_could_not_be_written(tmp_path, monkeypatch):
    def fail(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("longlive.data.pair_shards.save_file", fail)
    with pytest.raises(UserError, match="no space left on device"):
        write(tmp_path, 0)
    assert list(tmp_path.iterdir()) == []
