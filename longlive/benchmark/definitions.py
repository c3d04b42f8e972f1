"""What each figure means, in one place: results name these, and the report prints them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Definition:
    """One figure.

    Attributes:
        title: Short name for a table.
        unit: ``ms``, ``fps``, ``s``, ``bytes``, ``count`` or ``ratio``.
        better: ``lower`` or ``higher``; empty where neither is.
        text: What it is, exactly.
        group: ``steady``, ``jitter``, ``first frame``, ``prompt switch``, ``memory``, ``start-up``,
            ``check`` or ``literature``.
    """

    title: str
    unit: str
    better: str
    text: str
    group: str


_STEADY = (
    "steady blocks: index 3 and later, none with a prompt switch or before one; all plain rollouts"
)
_ALONE = "latents-only rollouts instead where plain ones decode beside the transformer"

DEFINITIONS = {
    "inter_frame_ms": Definition(
        "inter-frame latency",
        "ms",
        "lower",
        f"block period / frames of the block, VAE and copy to host included; {_STEADY}",
        "steady",
    ),
    "block_period_ms": Definition(
        "block period",
        "ms",
        "lower",
        f"end of one block to the end of the next, VAE and copy to host included; {_STEADY}",
        "steady",
    ),
    "fps": Definition(
        "frames per second",
        "fps",
        "higher",
        "frames of one video / summed block periods, VAE and copy to host included; "
        f"{_STEADY}. Value: of all samples together",
        "steady",
    ),
    "diffusion_fps": Definition(
        "frames per second, diffusion only",
        "fps",
        "higher",
        "frames of one video / summed time of denoising steps and context update, without VAE and "
        f"copy; {_STEADY}; {_ALONE}. Value: of all samples together",
        "steady",
    ),
    "diffusion_ms": Definition(
        "diffusion of a block",
        "ms",
        "lower",
        f"denoising steps and context update of one block; {_STEADY}; {_ALONE}",
        "steady",
    ),
    "decode_ms": Definition(
        "VAE decode of a block",
        "ms",
        "lower",
        f"latents to frames, beside the transformer where the recipe decodes so; {_STEADY}",
        "steady",
    ),
    "rollout_fps": Definition(
        "frames per second of a whole video",
        "fps",
        "higher",
        "frames of one video / wall clock from request to idle device: first frame, filling "
        "window and prompt switches included. Value: of all plain rollouts together",
        "steady",
    ),
    "host_gap_ms": Definition(
        "gap between blocks at the host",
        "ms",
        "lower",
        "time between the arrivals of the frames of neighboring blocks on the host, by the wall "
        f"clock, unpaced; the frames of a block arrive together; {_STEADY}",
        "jitter",
    ),
    "paced_gap_ms": Definition(
        "gap between frames, paced",
        "ms",
        "lower",
        "time between frames of a playout at 16 fps that begins with the first frame and waits for "
        "late ones: 62.5 where nothing stalls; all frames of plain rollouts. Value: the mean",
        "jitter",
    ),
    "stalls": Definition(
        "stalls of a playout at 16 fps",
        "count",
        "lower",
        "how often per plain rollout that playout has to wait for a frame. Value: the mean",
        "jitter",
    ),
    "stalled_ms": Definition(
        "stalled time of a playout at 16 fps",
        "ms",
        "lower",
        "how long per plain rollout that playout waits in all. Value: the mean",
        "jitter",
    ),
    "jitter_p99": Definition(
        "p99 / p50 of the block period", "ratio", "lower", f"of {_STEADY}", "jitter"
    ),
    "jitter_max": Definition(
        "max / p50 of the block period", "ratio", "lower", f"of {_STEADY}", "jitter"
    ),
    "first_frame_cold_ms": Definition(
        "first frame, cold prompt",
        "ms",
        "lower",
        "request to the first frames on the host, the prompt encoded anew; plain rollouts",
        "first frame",
    ),
    "first_frame_cached_ms": Definition(
        "first frame, cached prompt",
        "ms",
        "lower",
        "request to the first frames on the host, the text encoder's output at hand; the keys and "
        "values made of it are computed",
        "first frame",
    ),
    "switch_border_ms": Definition(
        "prompt switch from a block border",
        "ms",
        "lower",
        "end of the block before a planned switch to the first frames under the new prompt on the "
        "host: text encoding, recache, diffusion, decode, copy; plain rollouts",
        "prompt switch",
    ),
    "switch_added_ms": Definition(
        "added by a prompt switch",
        "ms",
        "lower",
        "periods of a block with a planned switch and of the one before it, which the switch "
        "spares its context update, less twice the median steady period of its rollout; block 4 "
        "and later (block 3, or one after another switch: its period alone)",
        "prompt switch",
    ),
    "prompt_to_pixel_ms": Definition(
        "prompt to pixel, random arrival",
        "ms",
        "lower",
        "from a prompt that arrives uniformly at random inside a block to the first frames under "
        "it on the host, by the wall clock; random-arrival rollouts, one block under way at a time",
        "prompt switch",
    ),
    "peak_memory_bytes": Definition(
        "peak memory",
        "bytes",
        "lower",
        "highest allocated in plain rollouts, weights included. Value: the maximum",
        "memory",
    ),
    "reserved_memory_bytes": Definition(
        "reserved memory",
        "bytes",
        "lower",
        "highest held by the allocator in plain rollouts. Value: the maximum",
        "memory",
    ),
    "weights_memory_bytes": Definition(
        "memory of the weights",
        "bytes",
        "lower",
        "allocated once the weights are loaded, text encoder and VAE included",
        "memory",
    ),
    "load_s": Definition(
        "loading", "s", "lower", "weights read, merged and put on the device", "start-up"
    ),
    "warm_up_s": Definition(
        "warm-up", "s", "lower", "all warm-up rollouts, by the wall clock", "start-up"
    ),
    "compile_s": Definition(
        "compilation",
        "s",
        "lower",
        "what the first warm-up rollout takes longer than the median plain one: compilation, "
        "autotuning, graph capture, first use of kernels",
        "start-up",
    ),
    "wall_agreement": Definition(
        "wall clock / summed parts",
        "ratio",
        "",
        "wall clock of a plain rollout, from its request to the device idle, over the sum of its "
        "initialization and block periods: 1 if nothing is left out or counted twice",
        "check",
    ),
    "literature_ms_per_latent_frame": Definition(
        "ms per latent frame",
        "ms",
        "lower",
        f"block period / latent frames of the block (a latent frame is 4 frames); {_STEADY}",
        "literature",
    ),
    "literature_diffusion_ms_per_latent_frame": Definition(
        "ms per latent frame, without VAE",
        "ms",
        "lower",
        "denoising steps and context update of a block / its latent frames; "
        f"{_STEADY}; {_ALONE}. What many papers call latency per frame",
        "literature",
    ),
    "literature_diffusion_fps": Definition(
        "FPS without VAE, whole video",
        "fps",
        "higher",
        "all frames of a video / all time of its denoising steps and context updates, the cheaper "
        f"first blocks included: what papers print as FPS; plain rollouts, {_ALONE}. Value: of all "
        "of them together",
        "literature",
    ),
    "literature_first_block_latent_ms": Definition(
        "first latents",
        "ms",
        "lower",
        "diffusion of block 0 / its latent frames, without text encoding and VAE; plain rollouts, "
        f"{_ALONE}",
        "literature",
    ),
}
"""By the name of the figure in ``results.json``."""
