"""The transformer and its rollout, slowly and literally: formulas in float64, and no cache slots.

Keys and values of every latent frame are kept for ever, by the frame's index, and every call is
told which latent frames it sees and at which temporal position each of them stands. Nothing of the
package's layers, attention or bookkeeping is used; only the weights, by their published names.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from longlive.models.sizes import DiTConfig
from longlive.rollout.state import RolloutSpec


def layer_norm(x: Tensor, eps: float) -> Tensor:
    centered = x - x.mean(-1, keepdim=True)
    return centered / (centered.square().mean(-1, keepdim=True) + eps).sqrt()


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def gelu_tanh(x: Tensor) -> Tensor:
    return x / 2 * (1 + (math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)).tanh())


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def softmax_attention(q_LD: Tensor, k_SD: Tensor, v_SD: Tensor) -> Tensor:
    scores = (q_LD @ k_SD.T / math.sqrt(q_LD.shape[-1])).exp()
    return scores / scores.sum(-1, keepdim=True) @ v_SD


def sinusoid(timestep: float, width: int) -> Tensor:
    angles = [timestep * 10000 ** (-i / (width // 2)) for i in range(width // 2)]
    numbers = [math.cos(angle) for angle in angles] + [math.sin(angle) for angle in angles]
    return torch.tensor(numbers, dtype=torch.float64)


def rope(x_PND: Tensor, frame: float, grid: tuple[int, int]) -> Tensor:
    """Rotate one latent frame's tokens as complex numbers."""
    pairs = x_PND.shape[-1] // 2
    side = pairs // 3
    time = pairs - 2 * side
    steps = [10000 ** (-2 * j / (2 * time)) for j in range(time)]
    side_steps = [10000 ** (-2 * j / (2 * side)) for j in range(side)]
    angles = [
        [frame * w for w in steps] + [y * w for w in side_steps] + [x * w for w in side_steps]
        for y in range(grid[0])
        for x in range(grid[1])
    ]
    angles_PC = torch.tensor(angles, dtype=torch.float64)
    unit_P1C = torch.polar(torch.ones_like(angles_PC), angles_PC).unsqueeze(1)
    turned = torch.view_as_complex(x_PND.unflatten(-1, (pairs, 2)).contiguous()) * unit_P1C
    return torch.view_as_real(turned).flatten(-2)


class ReferenceDiT:
    """One video's transformer.

    Args:
        weights: State dict of the transformer, float64.
        config: Its shape.
    """

    def __init__(self, weights: Mapping[str, Tensor], config: DiTConfig) -> None:
        self.weights = weights
        self.config = config
        self.keys: list[dict[int, Tensor]] = [{} for _ in range(config.layers)]
        self.values: list[dict[int, Tensor]] = [{} for _ in range(config.layers)]

    def __call__(
        self,
        x_FCHW: Tensor,
        timesteps: Sequence[float],
        text_ME: Tensor,
        *,
        frames: Sequence[int],
        seen: Sequence[int],
        stored: Sequence[int],
        position: Mapping[int, float],
    ) -> Tensor:
        """Velocity of some latent frames.

        Args:
            x_FCHW: Their noisy latents.
            timesteps: 1000 sigma of each.
            text_ME: Embeddings of the prompt.
            frames: Their absolute indices.
            seen: Absolute indices of the latent frames that every query sees.
            stored: Which of ``frames`` leave their keys behind, before this call attends.
            position: Temporal rotary position of each latent frame of the call and seen.
        """
        config, eps = self.config, self.config.eps
        grid = x_FCHW.shape[2] // config.patch, x_FCHW.shape[3] // config.patch
        text = self._text(text_ME)
        tokens = [self._patches(x_CHW, grid) for x_CHW in x_FCHW]
        embeddings = [self._timestep(timestep) for timestep in timesteps]
        for layer in range(config.layers):
            prefix = f"blocks.{layer}."
            table = self.weights[prefix + "modulation"][0]
            m = [
                table + self._linear("time_projection.1", silu(e)).reshape(6, config.width)
                for e in embeddings
            ]
            queries = []
            for f, frame in enumerate(frames):
                u = layer_norm(tokens[f], eps) * (1 + m[f][1]) + m[f][0]
                q, k, v = self._projections(prefix + "self_attn.", u, u)
                queries.append(rope(q, position[frame], grid))
                if frame in stored:
                    self.keys[layer][frame], self.values[layer][frame] = k, v
            keys = torch.cat([rope(self.keys[layer][s], position[s], grid) for s in seen])
            values = torch.cat([self.values[layer][s] for s in seen])
            for f in range(len(frames)):
                out = self._attend(prefix + "self_attn.", queries[f], keys, values)
                x = tokens[f] + out * m[f][2]
                affine = layer_norm(x, eps) * self.weights[prefix + "norm3.weight"]
                affine = affine + self.weights[prefix + "norm3.bias"]
                q, k, v = self._projections(prefix + "cross_attn.", affine, text)
                x = x + self._attend(prefix + "cross_attn.", q, k, v)
                u = layer_norm(x, eps) * (1 + m[f][4]) + m[f][3]
                hidden = gelu_tanh(self._linear(prefix + "ffn.0", u))
                tokens[f] = x + self._linear(prefix + "ffn.2", hidden) * m[f][5]
        out_FCHW = torch.empty_like(x_FCHW)
        for f, e in enumerate(embeddings):
            shift, scale = self.weights["head.modulation"][0] + e
            out = self._linear("head.head", layer_norm(tokens[f], eps) * (1 + scale) + shift)
            self._unpatch(out, out_FCHW[f], grid)
        return out_FCHW

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.weights[name + ".weight"].T + self.weights[name + ".bias"]

    def _projections(self, name: str, asks: Tensor, seen: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values ``[tokens, N, D]``; the norms are over the whole width."""
        eps, heads = self.config.eps, (self.config.heads, -1)
        q = rms_norm(self._linear(name + "q", asks), self.weights[name + "norm_q.weight"], eps)
        k = rms_norm(self._linear(name + "k", seen), self.weights[name + "norm_k.weight"], eps)
        return (
            q.unflatten(-1, heads),
            k.unflatten(-1, heads),
            self._linear(name + "v", seen).unflatten(-1, heads),
        )

    def _attend(self, name: str, q_LND: Tensor, k_SND: Tensor, v_SND: Tensor) -> Tensor:
        heads = [
            softmax_attention(q_LND[:, n], k_SND[:, n], v_SND[:, n])
            for n in range(self.config.heads)
        ]
        return self._linear(name + "o", torch.cat(heads, -1))

    def _text(self, text_ME: Tensor) -> Tensor:
        padded = torch.zeros(self.config.text_len, text_ME.shape[1], dtype=torch.float64)
        padded[: len(text_ME)] = text_ME
        hidden = gelu_tanh(self._linear("text_embedding.0", padded))
        return self._linear("text_embedding.2", hidden)

    def _timestep(self, timestep: float) -> Tensor:
        hidden = self._linear("time_embedding.0", sinusoid(timestep, self.config.frequency_width))
        return self._linear("time_embedding.2", silu(hidden))

    def _patches(self, x_CHW: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens row by row; a patch is ordered channel, row, column."""
        p = self.config.patch
        weight = self.weights["patch_embedding.weight"].reshape(self.config.width, -1)
        rows = [
            x_CHW[:, y * p : (y + 1) * p, x * p : (x + 1) * p].reshape(-1)
            for y in range(grid[0])
            for x in range(grid[1])
        ]
        return torch.stack(rows) @ weight.T + self.weights["patch_embedding.bias"]

    def _unpatch(self, out_PO: Tensor, into_CHW: Tensor, grid: tuple[int, int]) -> None:
        """A patch of the output is ordered row, column, channel."""
        p, channels = self.config.patch, self.config.latent_channels
        for token, out in enumerate(out_PO):
            y, x = divmod(token, grid[1])
            for dy in range(p):
                for dx in range(p):
                    start = (dy * p + dx) * channels
                    into_CHW[:, y * p + dy, x * p + dx] = out[start : start + channels]


class ReferenceRollout:
    """Four lines of sampling, and a window that is a list of latent frames.

    Args:
        dit: The transformer.
        spec: What is asked for; batch 1, the re-noising sampler.
        draw: Noise ``[F, C, H, W]`` of a block and a step.
        text_of: Embeddings ``[M, E]`` of a prompt.
    """

    def __init__(
        self,
        dit: ReferenceDiT,
        spec: RolloutSpec,
        draw: Callable[[int, int], Tensor],
        text_of: Callable[[str], Tensor],
    ) -> None:
        self.dit = dit
        self.spec = spec
        self.draw = draw
        self.text_of = text_of
        self.sink = list(range(spec.sink_latent_frames))
        self.clean: list[Tensor] = []

    def run(self, prompts: Mapping[int, str]) -> Tensor:
        """Latents of the whole video; ``prompts`` maps latent frames, block starts, to prompts."""
        block = self.spec.geometry.block_latent_frames
        for start in range(0, self.spec.latent_frames or 0, block):
            if start in prompts:
                self.text = self.text_of(prompts[start])
                self._recache(start)
            self._denoise(range(start, start + block))
        return torch.stack(self.clean)

    def _denoise(self, frames: range) -> None:
        seen = self._visible(frames.stop)
        index, sigmas = frames.start // len(frames), self.spec.schedule.sigmas
        x = self.draw(index, 0)
        for step, sigma in enumerate(sigmas):
            x0 = x - sigma * self._call(x, sigma, frames, seen, frames)
            if step + 1 < len(sigmas):
                x = (1 - sigmas[step + 1]) * x0 + sigmas[step + 1] * self.draw(index, step + 1)
        self._call(x0, self.spec.context_sigma, frames, seen, frames)
        self.clean.extend(x0)

    def _visible(self, end: int) -> list[int]:
        """The sink and the latent frames before ``end`` that fit in the window beside it."""
        window = self.spec.window_latent_frames
        oldest = 0 if window is None else end - (window - self.spec.sink_latent_frames)
        return [f for f in range(end) if f in self.sink or f >= oldest]

    def _recache(self, end: int) -> None:
        if end == 0:
            return
        window, size = self.spec.window_latent_frames, self.spec.sink_latent_frames
        asked = self.spec.recached_latent_frames or window
        frames = range(0 if asked is None else max(0, end - asked), end)
        is_part = frames.start > 0 and asked != window
        if is_part:
            seen = self._visible(end)
            stored = [f for f in frames if f in seen and f not in self.sink]
        elif frames.start == 0 or not self.spec.keeps_sink:
            self.sink = list(frames[:size])
            seen = stored = list(frames)
        else:
            stored = list(frames[size:])
            seen = [*self.sink, *stored]
        x = torch.stack(self.clean[frames.start :])
        self._call(x, self.spec.context_sigma, frames, seen, stored)

    def _call(
        self,
        x_FCHW: Tensor,
        sigma: float,
        frames: Sequence[int],
        seen: Sequence[int],
        stored: Sequence[int],
    ) -> Tensor:
        position = {frame: frame for frame in [*frames, *seen]}
        if self.spec.positions == "relative":
            # What a protected sink drops in a recache asks from the places that the sink holds.
            position = {frame: place for place, frame in enumerate(frames)}
            position |= {frame: place for place, frame in enumerate(seen)}
        # The network is told a float32 number.
        timesteps = torch.full((len(frames),), 1000 * sigma, dtype=torch.float32).tolist()
        return self.dit(
            x_FCHW,
            timesteps,
            self.text,
            frames=frames,
            seen=seen,
            stored=stored,
            position=position,
        )
