"""Compare our modules with golden tensors of the official ones, case by case.

    python tools/check_parity.py ../shared/golden [--case 02] [--dtype float64]

A folder holds cases ``NN-name.json`` + ``NN-name.safetensors`` and ``weights/*.safetensors``. One
line per case: pass or FAIL, the largest error over its tolerance, and the tensor it is in. Exits
with 1 if a case fails, with 2 if there is none.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from parity_case import Case, outputs_of
from parity_training import check_distillation
from torch import Tensor, nn

from longlive.attention.backends import sdpa_attention
from longlive.attention.rope import Rotation, angular_steps, axis_pairs, rotate, rotation
from longlive.geometry import SPATIAL_STRIDE, Geometry
from longlive.models.dit import DiT
from longlive.models.layers import timestep_features
from longlive.models.sizes import DiTConfig
from longlive.models.text_encoder import UMT5Config, UMT5Encoder, relative_buckets
from longlive.models.vae import WanVAE
from longlive.models.vae_networks import VAEConfig
from longlive.rollout.denoiser import CausalDenoiser, Denoiser
from longlive.rollout.loop import stream_blocks
from longlive.rollout.prompts import PromptTimeline
from longlive.rollout.state import RolloutSpec, RolloutState, StepInputs
from longlive.schedule import (
    DenoisingSchedule,
    NoiseTable,
    add_noise,
    euler_step,
    velocity_from_x0,
    x0_from_velocity,
)
from longlive.weights.loading import load_strict
from longlive.weights.lora import adapters_of, inject_lora, merge_lora
from longlive.weights.state_dicts import read_checkpoint


def dit_of(case: Case) -> DiT:
    return DiT(DiTConfig.from_official(case.config["model"])).to(case.dtype)


def dit_parts(dit: DiT) -> dict[str, nn.Module]:
    first = next(dit.layers)
    return {
        "text_embedding": dit.text_embedding,
        "e": dit.time_embedding,
        "block0.self_attn": first.self_attn,
        "block0.cross_attn": first.cross_attn,
        "block0.ffn": first.ffn,
        "head": dit.head,
        **{f"block{index}": layer for index, layer in enumerate(dit.layers)},
    }


def geometry_of(case: Case, block: int) -> Geometry:
    rows, columns = case.config["latent_hw"]
    patch = case.config["model"]["patch_size"][-1]
    channels = case.config["model"]["in_dim"]
    return Geometry(rows * SPATIAL_STRIDE, columns * SPATIAL_STRIDE, channels, patch, block)


class PlainDenoiser(CausalDenoiser):
    """A causal denoiser that takes one timestep per latent frame, and never skips an output."""

    timesteps_BF: Tensor | None = None

    def __call__(self, x_BFCHW: Tensor, inputs: StepInputs) -> Tensor | None:
        if self.timesteps_BF is not None:
            inputs = replace(inputs, timestep_BF=self.timesteps_BF)
        return super().__call__(x_BFCHW, replace(inputs, keys_only=False))


def causal_call(case: Case, dit: DiT, x_BFCHW: Tensor) -> tuple[Tensor, RolloutState]:
    """One pass over the first latent frames of an empty cache."""
    config = case.config
    frames = x_BFCHW.shape[1]
    window = config.get("local_attn_size", -1)
    spec = RolloutSpec(
        geometry=geometry_of(case, frames),
        schedule=DenoisingSchedule((1.0,)),
        latent_frames=config.get("kv_cache_frames", frames) if window == -1 else frames,
        window_latent_frames=None if window == -1 else window,
        sink_latent_frames=max(0, config.get("sink_size", 0)),
        batch=x_BFCHW.shape[0],
    )
    state = RolloutState.allocate(spec, dit.config, case.dtype, torch.device("cpu"))
    state.cross_cache.store(dit.text_keys_values(case.input("prompt_embeds")))
    denoiser = PlainDenoiser(dit, state.cache, state.cross_cache, spec.geometry, sdpa_attention)
    denoiser.timesteps_BF = case.input("t")
    plan = state.plan_block()
    velocity = denoiser(x_BFCHW, state.step_inputs(plan, 1.0))
    state.window.commit(plan)
    assert velocity is not None
    return velocity, state


def compare_cache(case: Case, prefix: str, state: RolloutState) -> None:
    """Compare the cache in the reference's order of slots."""
    window = state.window
    used = [window.physical(index, window.head) for index in range(window.filled)]
    order = [*used, *(s for s in range(state.cache.slots) if s not in used)]
    for layer in range(len(state.cache.k)):
        k_BSPND, v_BSPND = (buffer[layer][:, order] for buffer in (state.cache.k, state.cache.v))
        if state.spec.positions == "relative":
            k_BSPND = as_the_reference_keeps_them(k_BSPND, state)
        case.compare(f"{prefix}.layer{layer}.k", k_BSPND.flatten(1, 2))
        case.compare(f"{prefix}.layer{layer}.v", v_BSPND.flatten(1, 2))
    tokens, layers = state.spec.geometry.tokens_per_latent_frame, len(state.cache.k)
    case.compare(f"{prefix}.global_end_index", torch.tensor([state.window.end * tokens] * layers))
    case.compare(f"{prefix}.local_end_index", torch.tensor([state.window.filled * tokens] * layers))


def as_the_reference_keeps_them(k_BSPND: Tensor, state: RolloutState) -> Tensor:
    """Keys of a relative window, oldest first, turned back: the reference turns them when read."""
    geometry, first = state.spec.geometry, state.window.end - state.window.filled
    positions_S = torch.arange(first, first + k_BSPND.shape[1])
    grid = geometry.grid_height, geometry.grid_width
    by = rotation(positions_S, *grid, k_BSPND.shape[-1], k_BSPND.dtype)
    return rotate(k_BSPND.flatten(1, 2), Rotation(by.cos, -by.sin)).view_as(k_BSPND)


def check_causal_forward(case: Case) -> None:
    dit = dit_of(case)
    case.load(dit)
    x_BCFHW = case.input("x")
    x_BFCHW = x_BCFHW.transpose(1, 2)
    with outputs_of(dit_parts(dit)) as seen:
        velocity, state = causal_call(case, dit, x_BFCHW)
    case.compare("flow", velocity.transpose(1, 2))
    frames = x_BFCHW.shape[1]
    for key, value in seen.items():
        case.compare(key, value.unflatten(1, (frames, -1)) if key == "head" else value)
    case.compare("e0", dit.embed_timestep(case.input("t"), case.dtype)[1])
    sinusoids = timestep_features(case.input("t").flatten(), dit.config.frequency_width)
    case.compare("sinusoidal", sinusoids)
    compare_patches(case, dit, x_BFCHW)
    steps = torch.cat([angular_steps(pairs) for pairs in axis_pairs(dit.config.head_dim)])
    angles = torch.outer(torch.arange(64).double(), steps)
    case.compare("rope_cos_first64", angles.cos())
    case.compare("rope_sin_first64", angles.sin())
    compare_cache(case, "cache.after", state)
    for layer in range(len(state.cross_cache)):
        k, v = state.cross_cache[layer]
        case.compare(f"cross_cache.layer{layer}.k", k)
        case.compare(f"cross_cache.layer{layer}.v", v)


def compare_patches(case: Case, dit: DiT, x_BFCHW: Tensor) -> None:
    grid = [side // dit.config.patch for side in x_BFCHW.shape[-2:]]
    tokens = dit.embed_patches(x_BFCHW).unflatten(1, (x_BFCHW.shape[1], *grid))
    golden = case.tensors.get("out.patch_embedding")
    batch = len(x_BFCHW) if golden is None else len(golden)
    # The reference embeds sample by sample, and the case holds the last one.
    case.compare("patch_embedding", tokens[-batch:].permute(0, 4, 1, 2, 3))


@dataclass
class RecordedNoise:
    """The noise a golden case was made with."""

    case: Case
    block: int

    def draw(self, block_index: int, step_index: int) -> Tensor:
        if step_index == 0:
            start = block_index * self.block
            return self.case.input("noise")[:, start : start + self.block]
        noise = self.case.input(f"renoise.block{block_index}.step{step_index - 1}")
        batch = self.case.config["batch"]
        return noise.unflatten(0, (batch, -1))


class Comparer:
    """Compares a rollout with a case while it runs, as hooks and as a wrapped denoiser."""

    def __init__(self, case: Case, denoiser: Denoiser) -> None:
        self.case = case
        self.denoiser = denoiser
        self.recaches = 0
        self.purpose = "denoise"

    def __call__(self, x_BFCHW: Tensor, inputs: StepInputs) -> Tensor | None:
        if inputs.keys_only and self.purpose == "recache":
            self.case.compare(f"recache{self.recaches}.frames_in", x_BFCHW)
        flow = self.denoiser(x_BFCHW, inputs)
        assert flow is not None
        if inputs.keys_only and self.purpose == "recache":
            self.case.compare(f"recache{self.recaches}.flow", flow)
        elif inputs.keys_only:
            self.case.compare(f"context_flow.block{self.block}", flow)
        return flow

    def call(self, hook: str, state: RolloutState, *args: Any) -> None:
        self.block = state.block_index
        if hook == "on_prompt_switch":
            self.purpose = "recache"
        elif hook == "on_recache_end":
            self.case.compare(f"recache{self.recaches}.frame", torch.tensor([state.block_start]))
            compare_cache(self.case, f"cache.after_recache{self.recaches}", state)
            self.recaches += 1
        elif hook == "on_block_start":
            self.purpose = "denoise"
        elif hook == "on_denoise_step_end":
            self.case.compare(f"x0.block{self.block}.step{state.step_index}", args[0])
        elif hook == "on_block_end":
            compare_cache(self.case, f"cache.after_block{self.block}", state)


def check_rollout(case: Case) -> None:
    config = case.config
    dit = dit_of(case)
    case.load(dit)
    block, window = config["num_frame_per_block"], config["local_attn_size"]
    schedule = DenoisingSchedule.from_steps(
        config["denoising_step_list"], shift=config["timestep_shift"]
    )
    frames = block * config["num_blocks"]
    spec = RolloutSpec(
        geometry=geometry_of(case, block),
        schedule=schedule,
        latent_frames=frames,
        window_latent_frames=None if window == -1 else window,
        sink_latent_frames=config.get("sink_size", 0),
        positions="relative" if config.get("use_infinite_attention") else "absolute",
        keeps_sink=config.get("global_sink", True),
        context_sigma=config.get("context_noise", 0) / 1000,
        batch=config["batch"],
        computes_unread=True,
    )
    state = RolloutState.allocate(spec, dit.config, case.dtype, torch.device("cpu"))
    plain = PlainDenoiser(dit, state.cache, state.cross_cache, spec.geometry, sdpa_attention)
    comparer = Comparer(case, plain)
    switches = config.get("switch_frame_indices", [])
    # The prompts of a case are embeddings; their text is their number.
    names = [str(index) for index in range(len(switches) + 1)]
    timeline = PromptTimeline.switching(names, switches) if switches else PromptTimeline.single("0")

    def text_of(name: str) -> list[tuple[Tensor, Tensor]]:
        key = f"prompt_embeds.{name}" if switches else "prompt_embeds"
        return dit.text_keys_values(case.input(key))

    noise, cursor = RecordedNoise(case, block), timeline.start()
    blocks = stream_blocks(state, comparer, noise, cursor, text_of, comparer)
    case.compare("latents", torch.cat(list(blocks), 1))
    case.compare("denoising_timesteps", torch.tensor(schedule.timesteps))


def check_scheduler(case: Case) -> None:
    clean, noise, flow = (case.input(key) for key in ("clean", "noise", "flow"))
    timestep = case.input("timestep")
    for shift in case.config["shifts"]:
        table, name = NoiseTable(shift), f"shift{shift:g}"
        case.compare(f"{name}.sigmas", table.sigmas)
        case.compare(f"{name}.timesteps", table.timesteps)
        case.compare(f"{name}.training_weights", table.training_weights)
        index = table.nearest_index(timestep)
        sigma = table.sigma_at(timestep)
        case.compare(f"{name}.nearest_index", index)
        case.compare(f"{name}.training_weight", table.training_weights[index])
        case.compare(f"{name}.training_target", noise - clean)
        case.compare(f"{name}.add_noise", add_noise(clean, noise, sigma))
        case.compare(f"{name}.flow_to_x0", x0_from_velocity(noise, flow, sigma))
        case.compare(f"{name}.x0_to_flow", velocity_from_x0(noise, clean, sigma))
        following = torch.cat([table.sigmas, torch.zeros(1)])[index + 1]
        if (following == 0).any():
            # The reference sends a whole batch to zero as soon as one sample is at the end.
            following = torch.zeros_like(following)
        case.compare(f"{name}.step", euler_step(noise, flow, sigma, following))
        for steps in case.config["denoising_step_lists"]:
            schedule = DenoisingSchedule.from_steps(steps, shift=shift)
            key = "_".join(str(step) for step in steps)
            case.compare(f"{name}.warped.{key}", torch.tensor(schedule.timesteps))


def check_text_encoder(case: Case) -> None:
    t5 = case.config["t5"]
    ids, mask = case.input("ids"), case.input("mask")
    config = UMT5Config(
        vocab=t5["vocab"],
        width=t5["dim"],
        attention_width=t5["dim_attn"],
        ffn_width=t5["dim_ffn"],
        heads=t5["num_heads"],
        layers=t5["num_layers"],
        text_len=ids.shape[1],
        buckets=t5["num_buckets"],
    )
    encoder = UMT5Encoder(config)
    case.load(encoder)
    first = encoder.blocks[0]
    parts = {
        "block0": first,
        "block0.attn": first.get_submodule("attn"),
        "block0.ffn": first.get_submodule("ffn"),
        "block0.pos_bias": first.get_submodule("pos_embedding"),
        "encoder": encoder.norm,
    }
    with outputs_of(parts) as seen:
        case.compare("prompt_embeds", encoder(ids, mask, trim=False))
    for key, value in seen.items():
        case.compare(key, value)
    case.compare("rel_bucket", relative_buckets(ids.shape[1], config.buckets))
    case.compare("prompt_embeds", encoder(ids, mask))


def check_vae(case: Case) -> None:
    config = case.config
    vae = WanVAE(VAEConfig(base_width=config["dim"]))
    case.load(vae)
    latents, video = case.input("latents"), case.input("video")
    for frames in config["decode_frames"]:
        raw = vae.decode_raw(latents[:, :frames])
        case.compare(f"decode{frames}.raw", raw.transpose(1, 2))
        case.compare(f"decode{frames}.pixel", raw.clamp(-1, 1))
    for chunks in config["stream_chunks"]:
        stream, name = vae.open_stream(), "_".join(map(str, chunks))
        for index, chunk in enumerate(latents[:, : sum(chunks)].split(chunks, 1)):
            part = stream.decode_raw(chunk).clamp(-1, 1)
            case.compare(f"stream_{name}.part{index}", part)
    total, size = config["chunk_reset"]
    parts = [vae.decode_raw(chunk).clamp(-1, 1) for chunk in latents[:, :total].split(size, 1)]
    case.compare(f"chunk_reset_{total}_by_{size}", torch.cat(parts, 1))
    for frames in config["encode_frames"]:
        # Our frames are in [0, 1].
        unit = (video[:, :, :frames].transpose(1, 2) + 1) / 2
        case.compare(f"encode{frames}", vae.encode(unit))
    compare_decoder(case, vae, latents[:, :3])


def compare_decoder(case: Case, vae: WanVAE, latents: Tensor) -> None:
    """Compare what the decoder's layers return for each of the first latent frames."""
    decoder = vae.decoder
    layers = {"decoder.conv1": decoder.conv1}
    layers |= {f"decoder.middle.{i}": layer for i, layer in enumerate(decoder.middle)}
    layers |= {f"decoder.upsamples.{i}": layer for i, layer in enumerate(decoder.upsamples)}
    stream = vae.open_stream()
    for index, latent in enumerate(latents.split(1, 1)):
        with outputs_of(layers) as seen:
            stream.decode_raw(latent)
        for key, value in seen.items():
            case.compare(f"latent_frame{index}.{key}", value)
    scaled = vae.denormalize(latents).transpose(1, 2)
    case.compare("latent_frame0.conv2", vae.conv2(scaled))


def check_bidirectional(case: Case) -> None:
    dit = dit_of(case)
    case.load(dit)
    x_BFCHW = case.input("x").transpose(1, 2)
    with outputs_of(dit_parts(dit)) as seen:
        text = dit.text_keys_values(case.input("prompt_embeds"))
        velocity = dit.bidirectional(x_BFCHW, case.input("t"), text, attention="sdpa")
    case.compare("flow", velocity.transpose(1, 2))
    # Zero tokens that are appended and masked out change nothing, so we never append any.
    case.compare("flow_padded_seq", velocity.transpose(1, 2))
    for key, value in seen.items():
        case.compare(key, value.squeeze(1) if key == "e" else value)
    case.compare("e0", dit.embed_timestep(case.input("t").unsqueeze(1), case.dtype)[1].squeeze(1))
    compare_patches(case, dit, x_BFCHW)
    case.compare("wrapper.flow", velocity)
    sigma = NoiseTable(case.config["timestep_shift"]).sigma_at(case.input("t"))
    case.compare("wrapper.x0", x0_from_velocity(x_BFCHW, velocity, sigma))


def check_lora(case: Case) -> None:
    x_BFCHW = case.input("x").transpose(1, 2)
    alpha = float(case.config["alpha"])
    base = case.weights("model")
    lora = read_checkpoint(case.folder / case.manifest["weights"]["lora"])
    adapters = adapters_of(lora, case.manifest["weights"]["lora"])
    merged = merge_lora(base, adapters, alpha)
    for key, value in merged.items():
        case.compare(f"merged.{key}", value)
    for key, weights in (("base_flow", base), ("merged_flow", merged)):
        dit = dit_of(case)
        load_strict(dit, weights, case.name, dtype=case.dtype)
        case.compare(key, causal_call(case, dit, x_BFCHW)[0].transpose(1, 2))
    dit = dit_of(case)
    case.load(dit)
    inject_lora(dit, adapters, alpha)
    case.compare("lora_flow", causal_call(case, dit.to(case.dtype), x_BFCHW)[0].transpose(1, 2))


CHECKS: dict[str, Callable[[Case], None]] = {
    "causal_forward": check_causal_forward,
    "rollout": check_rollout,
    "scheduler": check_scheduler,
    "t5": check_text_encoder,
    "vae": check_vae,
    "bidirectional": check_bidirectional,
    "lora": check_lora,
    "dmd": check_distillation,
}


def check(path: Path, dtype: torch.dtype = torch.float32) -> Case | None:
    """Run one case; None if its kind is unknown."""
    case = Case.read(path, dtype)
    run = CHECKS.get(case.manifest["kind"])
    if run is None:
        return None
    with torch.no_grad():
        run(case)
    return case


def case_files(folder: Path) -> list[Path]:
    paths = folder.glob("*.json")
    return sorted(path for path in paths if path.with_suffix(".safetensors").exists())


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--case", default="", help="only cases whose name starts with this")
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    args = parser.parse_args(argv)
    paths = [path for path in case_files(args.folder) if path.name.startswith(args.case)]
    if not paths:
        print(f"no cases in {args.folder}", file=sys.stderr)
        return 2
    failed = 0
    for path in paths:
        case = check(path, getattr(torch, args.dtype))
        if case is None:
            print(f"skip  {path.stem:38} of a kind that is not known")
            continue
        passed = case.worst <= 1 and not case.missed()
        failed += not passed
        missed = f"  not compared: {', '.join(case.missed())}" if case.missed() else ""
        print(
            f"{'pass' if passed else 'FAIL'}  {case.name:38} {case.worst:8.4f} x tolerance in "
            f"{case.worst_key} ({len(case.compared)} tensors){missed}"
        )
    print(f"{len(paths)} cases, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
