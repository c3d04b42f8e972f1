"""The numbers of a table: what each is called, in which unit, and how videos are averaged."""

from dataclasses import dataclass
from typing import Literal

Better = Literal["higher", "lower", ""]
MeasureName = Literal["shapes", "temporal", "fidelity", "lpips", "clip"]
MEASURES: tuple[MeasureName, ...] = ("shapes", "temporal", "fidelity", "lpips", "clip")


@dataclass(frozen=True, slots=True)
class Number:
    """One column.

    Attributes:
        title: Its heading.
        group: Which measure it belongs to.
        better: Which end is good; empty where neither is.
        unit: ``share``, ``frames``, ``db``, ``px``, or empty.
        pool: How the videos' values become one: their ``mean``; the ``median`` of all of them; or
            ``psnr``, decibels of their mean (squared error).
    """

    title: str
    group: MeasureName
    better: Better
    unit: str = ""
    pool: Literal["mean", "median", "psnr"] = "mean"


NUMBERS: dict[str, Number] = {
    "adherence": Number("adherence", "shapes", "higher", "share"),
    "all_five": Number("all five", "shapes", "higher", "share"),
    "size": Number("size", "shapes", "higher", "share"),
    "colour": Number("color", "shapes", "higher", "share"),
    "shape": Number("shape", "shapes", "higher", "share"),
    "motion": Number("motion", "shapes", "higher", "share"),
    "background": Number("background", "shapes", "higher", "share"),
    "adherence_first": Number("adherence, first 10 s", "shapes", "higher", "share"),
    "adherence_last": Number("adherence, last 10 s", "shapes", "higher", "share"),
    "switch_lags": Number("switch lag", "shapes", "lower", "frames", "median"),
    "switch_missed": Number("switches missed", "shapes", "lower", "share"),
    "drift_saturation": Number("drift, saturation", "shapes", "lower", "share"),
    "drift_area": Number("drift, area", "shapes", "lower", "share"),
    "drift_background": Number("drift, background", "shapes", "lower", "share"),
    "flicker": Number("flicker", "shapes", "lower"),
    "seam": Number("seam", "shapes", "lower"),
    "block_seam": Number("block seam", "temporal", "lower"),
    "reverting_change": Number("reverting change", "temporal", "lower"),
    "motion_px": Number("motion", "temporal", "", "px"),
    "temporal_flickering": Number("temporal flickering (VBench)", "temporal", "higher"),
    "color_drift": Number("color drift", "temporal", "lower"),
    "sharpness_drift": Number("sharpness drift", "temporal", ""),
    "contrast_drift": Number("contrast drift", "temporal", ""),
    "latent_error": Number("latent error", "fidelity", "lower"),
    "latent_error_growth": Number("latent error per block", "fidelity", "lower"),
    "frame_mse": Number("PSNR", "fidelity", "higher", "db", "psnr"),
    "ssim": Number("SSIM", "fidelity", "higher"),
    "ms_ssim": Number("MS-SSIM", "fidelity", "higher"),
    "lpips": Number("LPIPS", "lpips", "lower"),
    "clip_score": Number("CLIP score", "clip", "higher"),
}
