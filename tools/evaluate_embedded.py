"""Scores of the embedded model on held-out prompts, as its model card prints them.

    python tools/evaluate_embedded.py --prompts 100 --steps 16 --guidance 3
    python tools/evaluate_embedded.py --student 4step --denoising 1000 750 500 250
    python tools/evaluate_embedded.py --vae

Videos are made in batches, which is how one GPU makes a hundred in seconds. --denoising takes the
steps of a student, with fresh noise between them, relative positions and no guidance. The last line
is JSON. Studies of more than a number: longlive evaluate --config configs/eval/students.yaml.
"""

import argparse
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from longlive.attention.backends import sdpa_attention
from longlive.data.shapes_world import render_clips
from longlive.geometry import Geometry, frames_of
from longlive.metrics.shapes_adherence import ShapesAdherence
from longlive.metrics.shapes_judge import ClipScore, judge_clip
from longlive.models.dit import stack_text
from longlive.models.reconstruction import psnr_db
from longlive.models.vae import WanVAE
from longlive.models.vae_layers import use_channels_last
from longlive.rollout.denoiser import CausalDenoiser, Denoiser, GuidedDenoiser
from longlive.rollout.hooks import NoHooks
from longlive.rollout.loop import stream_blocks
from longlive.rollout.noise import SeededNoise
from longlive.rollout.prompts import PromptTimeline
from longlive.rollout.state import RolloutSpec, RolloutState
from longlive.schedule import DenoisingSchedule
from longlive.shapes import ShapePrompt, held_out_prompts
from longlive.video.contact_sheet import save_contact_sheet
from longlive.video.frames import to_uint8
from longlive.weights.embedded import load_dit, load_text_encoder, load_tokenizer, load_vae

SIDE = 96
LATENT_FRAMES = 21


def judge(job: tuple[Tensor, ShapePrompt]) -> ClipScore:
    torch.set_num_threads(1)
    frames, prompt = job
    return judge_clip(frames.float() / 255, prompt)


def scores_of(videos: list[Tensor], prompts: list[ShapePrompt]) -> dict[str, float]:
    metric = ShapesAdherence()
    with ProcessPoolExecutor() as pool:
        metric.update(list(pool.map(judge, zip(videos, prompts, strict=True))))
    return {name: round(float(value), 4) for name, value in metric.compute().items()}


def picked_prompts(count: int) -> list[ShapePrompt]:
    """Held-out prompts, evenly spread over their list."""
    prompts = held_out_prompts()
    return [prompts[index * len(prompts) // count] for index in range(count)]


class Model:
    """The embedded model, for many videos side by side."""

    def __init__(
        self, folder: str | None, student: str | None, vae: WanVAE, dtype: torch.dtype
    ) -> None:
        self.vae = vae
        self.device, self.dtype = vae.conv2.weight.device, dtype
        self.dit = load_dit(folder, student).to(self.device, dtype)
        self.text_encoder = load_text_encoder(folder).to(self.device)
        self.tokenizer = load_tokenizer(folder)

    def embed(self, prompts: list[str]) -> list[tuple[Tensor, Tensor]]:
        tokens = self.tokenizer(prompts, allow_empty=True)
        text = self.text_encoder(tokens.ids.to(self.device), tokens.mask.to(self.device))
        return self.dit.text_keys_values(text)

    def latents(self, prompts: list[str], seed: int, options: RolloutSpec) -> Tensor:
        geometry = replace(options.geometry, patch=self.dit.config.patch)
        spec = replace(options, geometry=geometry, batch=len(prompts)).check()
        state = RolloutState.allocate(spec, self.dit.config, self.dtype, self.device)
        denoiser: Denoiser = CausalDenoiser(
            self.dit, state.cache, state.cross_cache, spec.geometry, sdpa_attention
        )
        text = self.embed(prompts)
        if spec.guidance != 1:
            denoiser = GuidedDenoiser(denoiser, spec.guidance)
            text = stack_text([text, self.embed([""] * len(prompts))])
        noise = SeededNoise(seed, spec.geometry.block_shape(len(prompts)), self.dtype, self.device)
        cursor = PromptTimeline.single("the prompts of the batch").start()
        blocks = stream_blocks(state, denoiser, noise, cursor, lambda _: text, NoHooks())
        return torch.cat(list(blocks), 1)

    def videos(self, latents: Tensor) -> list[Tensor]:
        frames = [self.vae.decode(some.float()) for some in latents.split(8)]
        return [video.cpu() for some in frames for video in to_uint8(some)]


def evaluate_vae(vae: WanVAE, prompts: list[ShapePrompt]) -> dict[str, float]:
    """Judge what is left of true clips after the VAE has coded them."""
    videos, psnr = [], []
    for first in range(0, len(prompts), 8):
        some = prompts[first : first + 8]
        seeds, device = range(first, first + len(some)), vae.conv2.weight.device
        truth = render_clips(some, seeds, frames_of(LATENT_FRAMES), SIDE, device)
        made = vae.decode(vae.encode(truth, latents_at_once=None), latents_at_once=3)
        videos += [video.cpu() for video in to_uint8(made)]
        grey = [index for index, prompt in enumerate(some) if prompt.background == "grey"]
        psnr += [float(psnr_db(made[index], truth[index])) for index in grey]
    scores = scores_of(videos, prompts)
    return {**scores, "psnr_db_on_grey": round(sum(psnr) / max(1, len(psnr)), 2)}


def options_for(
    options: RolloutSpec, steps: int | list[int], guidance: float, shift: float
) -> RolloutSpec:
    """The options for a number of equal steps, or for the steps of a student."""
    if isinstance(steps, int):
        schedule = DenoisingSchedule.uniform(steps, shift=shift)
        return replace(options, schedule=schedule, guidance=guidance)
    schedule = DenoisingSchedule.from_steps(steps, shift=shift)
    return replace(
        options, schedule=schedule, guidance=1.0, sampler="renoise", positions="relative"
    )


@torch.no_grad()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", help="weights; the ones in the package by default")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--steps", type=int, nargs="+", default=[16])
    parser.add_argument("--student", help="name of a student beside the model")
    parser.add_argument("--denoising", type=int, nargs="+", help="steps in [1, 1000] of a student")
    parser.add_argument("--guidance", type=float, nargs="+", default=[3.0])
    parser.add_argument("--shift", type=float, default=3.0)
    parser.add_argument("--window", type=int, default=12)
    parser.add_argument("--sink", type=int, default=3)
    parser.add_argument("--positions", default="absolute", choices=["absolute", "relative"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--vae", action="store_true", help="judge the VAE's round trip instead")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet of the first videos")
    args = parser.parse_args()
    vae = load_vae(args.folder).to(args.device)
    use_channels_last(vae)
    prompts = picked_prompts(args.prompts)
    if args.vae:
        print(json.dumps(evaluate_vae(vae, prompts)))
        return 0
    model = Model(args.folder, args.student, vae, getattr(torch, args.dtype))
    rows = []
    options = RolloutSpec(
        geometry=Geometry(SIDE, SIDE, patch=1),
        schedule=DenoisingSchedule.uniform(16, shift=args.shift),
        latent_frames=LATENT_FRAMES,
        window_latent_frames=args.window,
        sink_latent_frames=args.sink,
        positions=args.positions,
        sampler="euler",
    )
    asked = [(args.denoising, 1.0)] if args.denoising else product(args.steps, args.guidance)
    for steps, guidance in asked:
        options = options_for(options, steps, guidance, args.shift)
        started = time.monotonic()
        videos: list[Tensor] = []
        for first in range(0, len(prompts), args.batch):
            texts = [prompt.text for prompt in prompts[first : first + args.batch]]
            videos += model.videos(model.latents(texts, args.seed + first, options))
        seconds = time.monotonic() - started
        rows.append(
            {
                "student": args.student,
                "steps": steps,
                "guidance": guidance,
                **scores_of(videos, prompts),
            }
        )
        print(f"{seconds:6.1f} s  {rows[-1]}", flush=True)
        if args.sheet:
            sheet = [video.permute(0, 2, 3, 1) for video in videos[:16]]
            save_contact_sheet(args.sheet, sheet, captions=[p.text for p in prompts[:16]])
    print(json.dumps(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
