"""Scripts of prompts on their way to ``predict_step``."""

import warnings
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest

from longlive.data.prompts import PromptDataModule, PromptScript
from longlive.errors import UserError


def scripts(**kwargs) -> list[PromptScript]:
    data = PromptDataModule(**kwargs)
    data.setup("predict")
    return list(data.predict_dataloader())


def file_of(tmp_path, *lines: str, suffix: str = ".txt"):
    path = tmp_path / f"prompts{suffix}"
    path.write_text("\n".join(lines))
    return path


class Recorder(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[PromptScript, int]] = []

    def predict_step(self, batch: PromptScript, batch_idx: int) -> int:
        self.seen.append((batch, batch_idx))
        return batch_idx


def test_the_trainer_hands_each_script_to_predict_step_as_it_is_and_without_a_warning(tmp_path):
    data = PromptDataModule(prompts_file=file_of(tmp_path, "one", "two", "three"), seed=5)
    model = Recorder()
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.predict(model, data)
    assert [script.prompts for script, _ in model.seen] == [("one",), ("two",), ("three",)]
    assert [index for _, index in model.seen] == [0, 1, 2]
    assert all(given is own for (given, _), own in zip(model.seen, data.scripts, strict=True))
    assert not [str(w.message) for w in caught if "worker" in str(w.message)]


def test_one_prompt_is_one_video():
    assert scripts(prompt="a red circle", seed=3) == [PromptScript(0, ("a red circle",), None, 3)]


def test_a_list_of_prompts_is_one_video_that_switches():
    [script] = scripts(prompt=["a", "b", "c"], switch_latent_frames=[6, 12])
    assert (script.prompts, script.switch_latent_frames) == (("a", "b", "c"), (6, 12))
    assert script.timeline(30, 3).plan(30, 3) == [(0, "a"), (6, "b"), (12, "c")]


def test_prompts_without_switches_get_equal_shares_of_whatever_length_is_made():
    [script] = scripts(prompt=["a", "b", "c"])
    assert script.timeline(30, 3).switch_latent_frames == (10, 20)
    assert script.timeline(240, 3).switch_latent_frames == (80, 160)
    with pytest.raises(UserError, match="never be shown"):
        script.timeline(6, 3)


def test_switches_are_checked_against_the_length_once_it_is_known():
    [script] = scripts(prompt=["a", "b"], switch_latent_frames=[40])
    assert script.timeline(120, 3).switch_latent_frames == (40,)
    with pytest.raises(UserError, match="prompt 2 would never be shown"):
        script.timeline(30, 3)


def test_each_video_has_its_own_seed_whatever_rank_makes_it(tmp_path):
    data = PromptDataModule(prompts_file=file_of(tmp_path, *"abcde"), seed=10)
    data.setup("predict")
    found = {}
    for rank in range(2):
        shares = {"num_replicas": 2, "rank": rank}
        data.trainer = SimpleNamespace(strategy=SimpleNamespace(distributed_sampler_kwargs=shares))
        share = data.predict_dataloader()
        assert len(share) == len(list(share)) == (3, 2)[rank]
        found.update({script.index: (script.prompts[0], script.seed) for script in share})
    assert found == {i: ("abcde"[i], 10 + i) for i in range(5)}


def test_a_line_that_says_where_it_switches_is_believed_before_the_general_setting(tmp_path):
    path = file_of(
        tmp_path,
        '{"prompts": ["a", "b"]}',
        '{"prompts": ["c", "d", "e"], "switch_frame_indices": [3, 9]}',
        suffix=".jsonl",
    )
    found = scripts(prompts_file=path, switch_latent_frames=[21])
    assert [script.switch_latent_frames for script in found] == [(21,), (3, 9)]


def test_switches_that_do_not_fit_a_line_are_refused_with_its_number(tmp_path):
    path = file_of(tmp_path, '{"prompts": ["a", "b"]}', '{"prompts": ["c"]}', suffix=".jsonl")
    with pytest.raises(UserError, match=r"prompts\.jsonl line 2: 1 switch latent frames do not"):
        scripts(prompts_file=path, switch_latent_frames=[21])
    with pytest.raises(UserError, match=r"prompts\.jsonl line 1: 0 switch latent frames do not"):
        scripts(prompts_file=path, switch_latent_frames=[])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({}, "nothing to show"),
        ({"prompt": "a", "prompts_file": "p.txt"}, "leave one out"),
        ({"prompt": ""}, "^prompt 1 is empty"),
        ({"prompt": []}, "needs a prompt"),
        ({"prompt": ["a", "b"], "switch_latent_frames": [0]}, "never show the first prompt"),
        ({"prompts_file": "missing.txt"}, r"missing\.txt"),
    ],
)
def test_bad_input_is_a_user_error(kwargs, message):
    with pytest.raises(UserError, match=message):
        scripts(**kwargs)
