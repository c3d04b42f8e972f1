"""The distillation module: every stage trains, resumes bit for bit, refuses what cannot work."""

import logging
import os
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from nano_distillation import (
    CLIP,
    MATCHING,
    STREAMING,
    UPDATES,
    distillation,
    fit,
    nano_folder,
    prompts_file,
    saved,
    trainer_of,
)
from nano_model import DIT

from longlive.callbacks.optimization import compiler_missing
from longlive.callbacks.safe_checkpoint import SafeCheckpoint
from longlive.data.pair_shards import OdePairs, shard_path, write_shard
from longlive.data.training_prompts import TrainingPrompts
from longlive.distillation.decisions import Decisions
from longlive.distillation.draws import Draws
from longlive.distillation.matching import Matcher
from longlive.distillation.parts import PartClock
from longlive.distillation.regression import ConsistencyOptions
from longlive.distillation.self_forcing import StudentRollout
from longlive.errors import UserError
from longlive.models.dit import DiT
from longlive.modules.distillation_examples import Example
from longlive.modules.distillation_stages import Stage
from longlive.weights.embedded import save_component

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*in eval mode at the start of training.*", "ignore:.*does not have many workers.*"
)


@pytest.fixture(autouse=True)
def _quiet(caplog):
    caplog.set_level(logging.ERROR, "longlive")


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return nano_folder(tmp_path_factory.mktemp("nano"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    states = torch.randn(4, 3, 6, 16, 4, 6, generator=torch.Generator().manual_seed(0))
    write_shard(shard_path(folder, 0), states, ["a red circle"] * 4, [1.0, 0.75, 0.0])
    return folder


def same(a: Any, b: Any) -> bool:
    """Whether two nests of tensors and values are equal, bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def options_of(stage: str, pairs: Path) -> dict[str, Any]:
    if stage == "matching":
        return {}
    if stage == "shared":
        # The run is stopped between two updates of the student.
        return {"matching": replace(MATCHING, shares_rollout=True)}
    if stage == "streaming":
        return {"streaming": STREAMING, "decisions": Decisions(), "lora_rank": 2}
    data = OdePairs(pairs, batch_size=2)
    if stage == "pairs":
        return {"objective": "pairs", "data": data}
    if stage == "flow":
        return {"objective": "flow", "data": data}
    return {"objective": "consistency", "consistency": ConsistencyOptions(4, 2.0), "data": data}


STAGES = ["matching", "shared", "streaming", "flow", "pairs", "consistency"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(stage, weights, pairs, tmp_path):
    fit(tmp_path / "whole", weights, 5, **options_of(stage, pairs))
    fit(tmp_path / "half", weights, 3, **options_of(stage, pairs))
    torch.manual_seed(123)  # Nothing may depend on the global generator.
    resume = tmp_path / "half" / "last.ckpt"
    fit(tmp_path / "half", weights, 5, resume=resume, **options_of(stage, pairs))
    whole, resumed = saved(tmp_path / "whole"), saved(tmp_path / "half")
    for part in ("state_dict", "optimizer_states", "sizes", "global_step", "rollouts"):
        assert same(whole.get(part), resumed.get(part)), part
    before = initial(weights, stage, pairs)
    changed = [
        name for name, value in whole["state_dict"].items() if not torch.equal(value, before[name])
    ]
    for network in ("student.", "student_average.", *(["critic."] * (stage in STAGES[:3]))):
        assert any(name.startswith(network) for name in changed), network


def test_flow_matching_leaves_out_what_comes_before_a_clips_prompt(weights):
    dit = distillation(weights)._transformer("student", torch.device("cpu"))
    latents = torch.randn(2, 6, 16, 4, 6, generator=torch.Generator().manual_seed(0))
    text = torch.randn(2, 5, DIT.text_width, generator=torch.Generator().manual_seed(1))
    starts, draws = torch.tensor([3, 0]), Draws(0, torch.device("cpu"))
    example = Example(text, text, text, latents, starts=starts)
    stage = SimpleNamespace(student=dit, draws=draws, clock=PartClock(torch.device("cpu")))
    loss = Stage.flow_loss(stage, example, (4, 0))
    generator = draws.generator("flow", 4, 0)
    expected = dit.flow_matching_loss(latents, dit.text_keys_values(text), starts, generator)
    assert torch.equal(loss, expected)
    one, other = (Stage.flow_loss(stage, part, (4, 0)) for part in example.split(2))
    assert one != Stage.flow_loss(stage, replace(example.split(2)[0], starts=None), (4, 0))
    assert other == Stage.flow_loss(stage, replace(example.split(2)[1], starts=None), (4, 0))


def initial(weights: Path, stage: str, pairs: Path) -> dict[str, torch.Tensor]:
    options = options_of(stage, pairs)
    options.pop("data", None)
    model = distillation(weights, **options)
    model._build(torch.device("cpu"), torch.device("cpu"))
    return model.state_dict()


def test_frozen_networks_are_in_no_checkpoint(weights, tmp_path):
    fit(tmp_path, weights, 1)
    networks = {name.partition(".")[0] for name in saved(tmp_path)["state_dict"]}
    assert networks == {"student", "student_average", "critic"}


def test_micro_batches_train_what_the_whole_batch_does(weights, tmp_path):
    # The noise of each part is its own, so the mean of two parts is not that of one run; but two
    # parts equal two processes, see below, and a batch that cannot be cut is refused.
    with pytest.raises(UserError, match="cannot be cut into 3 equal parts"):
        fit(tmp_path, weights, 1, updates=replace(UPDATES, micro_batches=3))


def test_the_student_is_updated_every_few_steps_and_the_critic_always(weights, tmp_path):
    seen = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            student = pl_module.student.head.head.weight.detach().clone()
            critic = pl_module.critic.head.head.weight.detach().clone()
            seen.append((student, critic))

    fit(tmp_path, weights, 4, callbacks=(Watch(),))
    pairs = list(zip(seen, seen[1:], strict=False))
    assert [torch.equal(a[0], b[0]) for a, b in pairs] == [True, False, True]
    assert not any(torch.equal(a[1], b[1]) for a, b in pairs)


def test_a_shared_rollout_is_made_by_the_student_and_learned_by_the_critic(
    weights, tmp_path, monkeypatch
):
    rolled, learned = [], []
    roll, learn = StudentRollout.roll, Matcher.critic_loss

    def watched_roll(self, *args, **options):
        made = roll(self, *args, **options)
        rolled.append(made.detach().clone())
        return made

    def watched_learn(self, clip, *args):
        learned.append((clip.clone(), args[1].noise.clone()))
        return learn(self, clip, *args)

    monkeypatch.setattr(StudentRollout, "roll", watched_roll)
    monkeypatch.setattr(Matcher, "critic_loss", watched_learn)
    fit(tmp_path, weights, 4, matching=replace(MATCHING, shares_rollout=True))
    assert len(rolled) == 2
    for step, (clip, _) in enumerate(learned):
        assert torch.equal(clip, rolled[step // 2])
    # What is new to the critic each time is the noise.
    assert not torch.equal(learned[0][1], learned[1][1])


@pytest.mark.slow
@pytest.mark.skipif(
    compiler_missing(torch.device("cpu"), "inductor") is not None, reason="needs a C++ compiler"
)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf.*")
def test_compiled_layers_train_what_plain_ones_do(weights, tmp_path):
    torch._dynamo.reset()
    # Keys are read by blocks whose slots are overwritten before the backward pass.
    clip = replace(CLIP, latent_frames=12, positions="relative", exits="last")
    plain = fit(tmp_path / "a", weights, 1, clip=clip)
    compiled = fit(tmp_path / "b", weights, 1, clip=clip, compiles_student=True)
    for (name, a), (_, b) in zip(
        plain.student.named_parameters(), compiled.student.named_parameters(), strict=True
    ):
        assert (a.grad - b.grad).norm() <= 1e-4 * a.grad.norm() + 1e-7, name


def test_recomputation_changes_no_weight_but_by_rounding(weights, tmp_path):
    plain = fit(tmp_path / "a", weights, 3)
    again = fit(tmp_path / "b", weights, 3, recomputes=True)
    for (name, a), b in zip(plain.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.allclose(a, b, atol=1e-6), name


def test_the_average_starts_as_a_copy_and_then_lags(weights, tmp_path):
    late = replace(UPDATES, average_start=100)
    model = fit(tmp_path / "a", weights, 3, updates=late)
    assert torch.equal(model.student_average.head.head.weight, model.student.head.head.weight)
    model = fit(tmp_path / "b", weights, 3)
    assert not torch.equal(model.student_average.head.head.weight, model.student.head.head.weight)


def test_a_discriminator_needs_true_clips_and_trains_with_them(weights, pairs, tmp_path):
    judged = replace(MATCHING, discriminator_weight=0.1)
    data = OdePairs(pairs, batch_size=2)
    model = fit(tmp_path, weights, 2, matching=judged, data=data)
    assert model.discriminator is not None
    assert any(name.startswith("discriminator.") for name in saved(tmp_path)["state_dict"])
    with pytest.raises(UserError, match="needs true clips"):
        fit(tmp_path, weights, 1, matching=judged)


def test_a_stage_starts_from_the_average_of_the_stage_before_it(weights, tmp_path):
    before = fit(tmp_path / "a", weights, 2)
    model = distillation(weights, student=str(tmp_path / "a" / "last.ckpt"))
    model._build(torch.device("cpu"), torch.device("cpu"))
    assert torch.equal(model.student.head.head.weight, before.student_average.head.head.weight)
    torch.save({"state_dict": {}, "sizes": {}}, tmp_path / "empty.ckpt")
    model = distillation(weights, critic=str(tmp_path / "empty.ckpt"))
    with pytest.raises(UserError, match="holds no critic"):
        model._build(torch.device("cpu"), torch.device("cpu"))


@pytest.mark.parametrize("steps", [(1000, 750, 500), (1000, 500), (1000,)])
def test_fewer_steps_train_with_the_first_block_keeping_more(steps, weights, tmp_path):
    clip = replace(CLIP, denoising_steps=steps, first_denoising_steps=(1000, 750, 500, 250))
    fit(tmp_path, weights, 2, clip=clip)
    assert saved(tmp_path)["global_step"] == 2


def test_a_variant_without_context_update_trains(weights, tmp_path):
    fit(tmp_path, weights, 2, clip=replace(CLIP, updates_context=False))
    assert saved(tmp_path)["global_step"] == 2


def test_the_reference_decisions_train_too(weights, tmp_path):
    matching = replace(MATCHING, score_kind="bidirectional", per="clip")
    fit(
        tmp_path,
        weights,
        3,
        matching=matching,
        decisions="reference",
        streaming=STREAMING,
        recomputes=True,
    )
    assert saved(tmp_path)["global_step"] == 3


def test_mixed_precision_keeps_float32_weights(weights, tmp_path):
    model = distillation(weights)
    data = TrainingPrompts(prompts_file(weights), batch_size=2)
    trainer_of(tmp_path, 2, precision="bf16-mixed").fit(model, data)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert saved(tmp_path)["global_step"] == 2


def test_training_ends_when_its_time_is_up_and_the_rates_have_fallen(weights, tmp_path):
    rates = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            rates.append(pl_module._optimizers[0].param_groups[0]["lr"])

    updates = replace(UPDATES, warmup_steps=0, decay_share=1.0)
    fit(tmp_path, weights, 1000, updates=updates, max_seconds=2.0, callbacks=(Watch(),))
    assert 1 < len(rates) < 1000
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < rates[0]
    assert saved(tmp_path)["global_step"] == len(rates)


# What cannot work.


@pytest.mark.parametrize("network", ["student", "critic"])
def test_a_loss_that_is_not_finite_stops_naming_the_part_and_keeps_the_checkpoint(
    network, weights, tmp_path
):
    class Break(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 2:
                with torch.no_grad():
                    getattr(pl_module, network).head.head.weight.fill_(torch.nan)

    model = distillation(weights, decisions=Decisions(hides_nan=network == "critic"))
    data = TrainingPrompts(prompts_file(weights), batch_size=2)
    callbacks = [SafeCheckpoint(tmp_path, every=1), Break()]
    with pytest.raises(UserError, match=f"the {network} .* is not finite at training step 2"):
        trainer_of(tmp_path, 5, callbacks=callbacks).fit(model, data)
    kept = saved(tmp_path)
    assert kept["global_step"] == 2
    assert all(torch.isfinite(value).all() for value in kept["state_dict"].values())


def test_sigterm_finishes_the_step_saves_and_stops(weights, tmp_path):
    class Told(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 1:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit):
        fit(tmp_path, weights, 50, callbacks=(Told(),))
    assert saved(tmp_path)["global_step"] == 2


def test_a_teacher_of_another_text_width_or_latents_is_refused_in_one_line(weights, tmp_path):
    for change, named in (
        ({"text_width": 10}, "the teacher takes text of width 10"),
        ({"latent_channels": 3}, "the teacher takes 3 latent channels"),
    ):
        folder = tmp_path / named.rpartition(" ")[2]
        config = replace(DIT, **change)
        from dataclasses import asdict

        save_component(folder, "dit", DiT(config).state_dict(), asdict(config))
        model = distillation(weights, teacher=str(folder), critic=str(weights))
        with pytest.raises(UserError, match=named):
            model._build(torch.device("cpu"), torch.device("cpu"))


def test_teacher_weights_of_another_width_than_configured_are_refused_in_one_line(
    weights, tmp_path
):
    wide = DiT(replace(DIT, width=32))
    torch.save(wide.state_dict(), tmp_path / "teacher.pt")
    model = distillation(weights, teacher=str(tmp_path / "teacher.pt"), teacher_size="tiny")
    with pytest.raises(UserError, match="does not fit the model") as error:
        model._build(torch.device("cpu"), torch.device("cpu"))
    assert "\n" not in str(error.value)


def test_a_teacher_of_another_width_that_says_so_itself_trains(weights, tmp_path):
    from dataclasses import asdict

    wide = replace(DIT, width=32)
    save_component(tmp_path / "wide", "dit", DiT(wide).state_dict(), asdict(wide))
    fit(tmp_path, weights, 2, teacher=str(tmp_path / "wide"), critic=str(weights))
    assert saved(tmp_path)["sizes"]["critic"]["width"] == DIT.width


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"clip": replace(CLIP, denoising_steps=(500, 1000))}, "must fall"),
        ({"clip": replace(CLIP, first_denoising_steps=(500, 500))}, "must fall"),
        ({"streaming": replace(STREAMING, switch_latent_frames=(12,))}, "beyond the video"),
        ({"objective": "consistency", "updates": replace(UPDATES, average_decay=None)}, "average"),
        ({"objective": "flow", "context": "noisy"}, "set context to clean"),
        ({"clip": replace(CLIP, positions="relative"), "recomputes": True}, "recomputes"),
        ({"compiles_student": True, "recomputes": True}, "compiles_student"),
        ({"decisions": "official"}, "default, reference"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_weights_are_read(options, named):
    with pytest.raises(UserError, match=named) as error:
        distillation("nowhere", **options)
    assert "\n" not in str(error.value)


def test_data_of_another_kind_are_refused(weights, tmp_path):
    with pytest.raises(UserError, match="OdePairs"):
        fit(tmp_path, weights, 1, objective="pairs")

    class Numbers(pl.LightningDataModule):
        def train_dataloader(self):
            return [1, 2]

    with pytest.raises(UserError, match="cannot learn from a int"):
        fit(tmp_path, weights, 1, data=Numbers())


def test_a_stage_goes_on_in_the_merged_weights_of_a_stage_with_adapters(weights, tmp_path):
    before = fit(tmp_path / "a", weights, 3, lora_rank=2)
    model = distillation(weights, student=str(tmp_path / "a" / "last.ckpt"))
    model._build(torch.device("cpu"), torch.device("cpu"))
    layer = before.student_average.blocks[0].self_attn.q
    update = layer.lora_B.weight @ layer.lora_A.weight * layer.scale
    assert update.abs().sum() > 0
    merged = model.student.blocks[0].self_attn.q.weight
    assert torch.allclose(merged, layer.base_layer.weight + update, atol=1e-6)


def test_a_precision_without_float32_weights_is_refused(weights, tmp_path):
    data = TrainingPrompts(prompts_file(weights), batch_size=2)
    with pytest.raises(UserError, match="set trainer.precision to one of bf16-mixed, 32-true"):
        trainer_of(tmp_path, 1, precision="bf16-true").fit(distillation(weights), data)
