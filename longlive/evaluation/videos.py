"""Judges a folder of finished videos, whatever made them."""

from typing import Any

from longlive.errors import UserError
from longlive.evaluation.folders import GivenVideo, VideoFolder, timeline_of
from longlive.evaluation.measuring import Seen
from longlive.evaluation.module import Evaluation
from longlive.evaluation.records import Record, files_fingerprint, fingerprint_of
from longlive.evaluation.table import Study, StudyVariant
from longlive.video.read import read_video

FOLDER = "videos"


class JudgeVideos(Evaluation):
    """Judges finished videos; one that cannot be judged is named, and the rest goes on.

    Flicker is measured against a true clip that went through H.264 at the quality ``longlive``
    writes (CRF 18); videos stored otherwise show the difference in it. Arguments are those of
    :class:`longlive.evaluation.module.Evaluation`.
    """

    @property
    def data(self) -> VideoFolder:
        """The folder.

        Raises:
            UserError: If the data is of another kind.
        """
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, VideoFolder):
            raise UserError(
                "finished videos are read by longlive.evaluation.folders.VideoFolder: name it as "
                "data.class_path"
            )
        return data

    def describe(self) -> Study:
        data, gathered = self.data, self.data.gathered
        return Study(
            kind="videos",
            variants=(StudyVariant(data.folder.name or str(data.folder), FOLDER),),
            expected=tuple((FOLDER, v.path.name, self.fingerprint(v)) for v in gathered.videos),
            prompts=str(data.prompts_file or "the JSON beside each video"),
            measures=self.options.names,
            environment=self.environment(),
            not_judged=gathered.left_out,
        )

    def fingerprint(self, video: GivenVideo) -> str:
        """Of the file and its prompts."""
        return fingerprint_of(
            files_fingerprint(video.path),
            video.prompts,
            video.switch_latent_frames,
            video.seed,
            self.measures_fingerprint(),
        )

    def test_step(self, batch: GivenVideo | None, batch_idx: int = 0) -> None:
        """Judge one video, unless that is done."""
        if batch is None:
            return
        mark = self.fingerprint(batch)
        if self.store.read(FOLDER, batch.path.name, mark) is not None:
            return
        known: dict[str, Any] = {
            "variant": FOLDER,
            "key": batch.path.name,
            "fingerprint": mark,
            "index": batch.index,
            "seed": batch.seed,
            "video": str(batch.path),
        }
        try:
            frames_TCHW = read_video(batch.path).permute(0, 3, 1, 2)
            timeline = timeline_of(batch, len(frames_TCHW))
        # A damaged file may fail in the decoder or in what it decodes to; the rest goes on.
        except (ValueError, OSError, RuntimeError) as error:
            reason = " ".join(str(error).split()).removeprefix(f"{batch.path} ")
            self.store.write(Record(**known, timeline=(), left_out=reason))
            return
        frames, _, height, width = frames_TCHW.shape
        record = Record(**known, timeline=timeline, frames=frames, size=(height, width))
        seen = Seen(frames_TCHW, timeline, batch.seed, is_stored=True)
        self.measuring.submit(record, seen)
