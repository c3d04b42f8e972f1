"""Evaluates recipes: every variant makes every video of a prompt set, and each is judged."""

# Shape suffixes: T frames, C channels, H rows, W columns.

import logging
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor

from longlive.data.prompts import PromptScript
from longlive.errors import UserError
from longlive.evaluation.measures import MeasureName
from longlive.evaluation.measuring import Seen
from longlive.evaluation.module import Evaluation
from longlive.evaluation.output import VIDEOS, ReferenceStore, save_video
from longlive.evaluation.prompts import SEED_STRIDE, EvaluationPrompts, Task
from longlive.evaluation.records import Record, files_fingerprint, fingerprint_of
from longlive.evaluation.side_by_side import Made, make_videos, plan_of
from longlive.evaluation.study import AxisValue, Combine, variants_of
from longlive.evaluation.table import Study, StudyVariant
from longlive.evaluation.vbench import sample_name
from longlive.modules.longlive import LongLive
from longlive.video.naming import output_name

log = logging.getLogger(__name__)

Naming = Literal["longlive", "vbench"]


class EvaluateRollouts(Evaluation):
    """Makes and judges the videos of a recipe, or of all variants of a study.

    The first variant is the reference: the others are compared with its rollouts with the same
    noise (``fidelity``, ``lpips``), and their numbers with its numbers, prompt by prompt.

    Args:
        recipe: Configuration files as ``longlive predict`` takes them, the base first.
        settings: Arguments of ``LongLive`` for all variants.
        axes: Axis, then value, by name: what the variants differ in.
        combine: ``product`` for every combination of values, ``one_at_a_time`` for those that
            differ from the reference in one axis.
        reference: Value of each axis; the first of each by default.
        output: Folder for the results.
        measures: What to measure; ``shapes`` and ``temporal`` by default, and ``fidelity`` where
            there are axes.
        lpips_weights: AlexNet of torchvision, for ``lpips``.
        clip_weights: Folder of CLIP weights, for ``clip``.
        videos: How many videos of each variant are kept as files, the first ones; all by default.
        naming: ``longlive`` names files after number, prompt and seed, ``vbench`` as VBench expects
            them.
        workers: Processes that measure; 0 measures between the rollouts.

    Raises:
        UserError: If a variant cannot work; no weight is read before.
    """

    def __init__(  # noqa: PLR0913 - one argument is one key of the configuration.
        self,
        recipe: list[str],
        settings: dict[str, Any] | None = None,
        axes: dict[str, dict[str, AxisValue]] | None = None,
        combine: Combine = "product",
        reference: dict[str, str] | None = None,
        output: str | Path = "results",
        measures: list[MeasureName] | None = None,
        lpips_weights: str | None = None,
        clip_weights: str | None = None,
        videos: int | None = None,
        naming: Naming = "longlive",
        workers: int = 0,
    ) -> None:
        self.variants = variants_of(
            recipe, settings or {}, axes or {}, combine=combine, reference=reference
        )
        # Refused before any video is made. Their weights are read one after another.
        self._unloaded = [variant.recipe.model() for variant in self.variants]
        for variant in self.variants:
            variant.recipe.build_callbacks()
        default: list[MeasureName] = ["shapes", "temporal"]
        if axes:
            default.append("fidelity")
        super().__init__(
            output,
            default if measures is None else measures,
            lpips_weights,
            clip_weights,
            self._unloaded[0].block_latent_frames,
            workers,
        )
        self.kept_videos = videos
        self.naming = naming
        self.references = ReferenceStore(self.output)
        self._loaded: tuple[tuple[int, int], LongLive, list[pl.Callback]] | None = None
        self._weights: dict[str, str] = {}

    @property
    def variant_count(self) -> int:
        """How often each group of prompts is run."""
        return len(self.variants)

    def setup(self, stage: str) -> None:
        """Refuse prompts that do not fit the video; no weight is read yet.

        Raises:
            UserError: If a prompt would never be shown.
        """
        for model in self._unloaded:
            for script in self.data.scripts:
                try:
                    plan_of(model, script)
                except UserError as error:
                    raise UserError(f"video {script.index}: {error}") from error

    @property
    def data(self) -> EvaluationPrompts:
        """The prompts.

        Raises:
            UserError: If the data is of another kind.
        """
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, EvaluationPrompts):
            raise UserError(
                "rollouts are evaluated on longlive.evaluation.prompts.EvaluationPrompts: name it "
                "as data.class_path"
            )
        return data

    def describe(self) -> Study:
        scripts = self.data.scripts
        variants = tuple(
            StudyVariant(
                name=variant.name,
                folder=variant.folder,
                axes=variant.axes,
                settings={**model.settings},
                callbacks=tuple(type(c).__name__ for c in variant.recipe.build_callbacks()),
                note=variant.note,
            )
            for variant, model in zip(self.variants, self._unloaded, strict=True)
        )
        return Study(
            kind="rollouts",
            variants=variants,
            expected=tuple(
                (variant.folder, self.key(script), self.fingerprint(index, script))
                for index, variant in enumerate(self.variants)
                for script in scripts
            ),
            prompts=f"{self.data.prompts_file}: {len(scripts)} videos, seeds {self.data.seeds}",
            weights_kind=str(self._unloaded[0].weights),
            measures=self.options.names,
            environment=self.environment(),
        )

    def key(self, script: PromptScript) -> str:
        """Name of a video among those of its variant."""
        return f"{script.index:04d}-s{script.seed}"

    def fingerprint(self, variant: int, script: PromptScript) -> str:
        """Of everything that decides a video's numbers; batches are not part of it."""
        needs_reference = {"fidelity", "lpips"} & set(self.options.names)
        reference = self.fingerprint(0, script) if variant and needs_reference else ""
        return fingerprint_of(
            self._weights_of(variant),
            self._unloaded[variant].settings,
            self.variants[variant].recipe.callbacks,
            script.prompts,
            script.switch_latent_frames,
            script.seed,
            self.measures_fingerprint(),
            self.naming,
            reference,
        )

    def _weights_of(self, variant: int) -> str:
        name = self._unloaded[variant].weights
        if name not in self._weights:
            self._weights[name] = files_fingerprint(name)
        return self._weights[name]

    def test_step(self, batch: Task | None, batch_idx: int = 0) -> None:
        """Make and judge a group of videos, unless all of it is there."""
        if batch is None:
            return
        marks = {script: self.fingerprint(batch.variant, script) for script in batch.scripts}
        if all(self._is_there(batch.variant, script, mark) for script, mark in marks.items()):
            return
        model, callbacks = self._model(batch.variant, len(batch.scripts))
        for made in make_videos(model, callbacks, batch.scripts):
            self._keep(batch.variant, made, marks[made.script])

    def on_test_end(self) -> None:
        self._unload()
        super().on_test_end()

    def _is_there(self, variant: int, script: PromptScript, mark: str) -> bool:
        key = self.key(script)
        is_judged = self.store.read(self.variants[variant].folder, key, mark) is not None
        if variant or not self._compares or not is_judged:
            return is_judged
        return self.references.has(key, mark) or not any(
            self.store.read(other.folder, key, self.fingerprint(number, script)) is None
            for number, other in enumerate(self.variants)
        )

    @property
    def _compares(self) -> bool:
        return len(self.variants) > 1 and bool({"fidelity", "lpips"} & set(self.options.names))

    def _keep(self, variant: int, made: Made, mark: str) -> None:
        key, folder = self.key(made.script), self.variants[variant].folder
        video = self._save_video(folder, made)
        reference: tuple[Tensor | None, Tensor | None] = None, None
        if self._compares and variant == 0:
            self.references.write(key, mark, made)
        elif self._compares:
            reference = self.references.read(key, self.fingerprint(0, made.script))
        record = Record(
            variant=folder,
            key=key,
            fingerprint=mark,
            index=made.script.index,
            seed=made.script.seed,
            timeline=made.timeline,
            frames=len(made.frames_TCHW),
            size=(made.frames_TCHW.shape[-2], made.frames_TCHW.shape[-1]),
            video=video,
            seconds=made.seconds,
        )
        frames_TCHW, latents_FCHW = reference
        seen = Seen(
            made.frames_TCHW,
            made.timeline,
            made.script.seed,
            latents_FCHW=made.latents_FCHW,
            reference_frames_TCHW=frames_TCHW,
            reference_latents_FCHW=latents_FCHW,
            is_reference=variant == 0 and self._compares,
        )
        self.measuring.submit(record, seen)

    def _save_video(self, folder: str, made: Made) -> str:
        script = made.script
        place = [s.seed for s in self.data.scripts].index(script.seed)
        if self.kept_videos is not None and place >= self.kept_videos:
            return ""
        name = output_name(script.index, script.prompts[0], script.seed)
        if self.naming == "vbench":
            sample = self.data.seeds.index(script.seed // SEED_STRIDE)
            name = sample_name(self.data.name_of(script), sample)
        path = self.output / VIDEOS / folder / f"{name}.mp4"
        save_video(path, made.frames_TCHW, script.prompts[0])
        return path.relative_to(self.output).as_posix()

    def _model(self, variant: int, batch: int) -> tuple[LongLive, list[pl.Callback]]:
        # Callbacks keep prompts, buffers and captured passes of one batch size.
        if self._loaded is None or self._loaded[0] != (variant, batch):
            self._unload()
            log.info("%s", self.variants[variant].name)
            model = self.variants[variant].recipe.model()
            model.prepare(self.trainer.strategy.root_device)
            callbacks: list[pl.Callback] = [*self.variants[variant].recipe.build_callbacks()]
            self._loaded = (variant, batch), model, callbacks
        return self._loaded[1:]

    def _unload(self) -> None:
        self._loaded = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
