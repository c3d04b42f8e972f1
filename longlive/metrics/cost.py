"""How much a rollout computes and moves: FLOPs and bytes by kind of work, in closed form.

Only products are counted: matrix products, attention and convolutions. A multiply-add is two FLOPs.
Bytes are those of the operands and of the result, each once, as if no cache were too small and
nothing were read twice: less cannot be moved. Norms, rotary positions, activations and copies are
left out; ``docs/costs.md`` says what that hides.

Which passes a rollout makes is not restated here: the shapes come from the window's own
bookkeeping. Networks without a closed form are walked, see :mod:`longlive.metrics.cost_walk`.
"""

# Shape letters: L tokens that ask, S tokens seen, M tokens of the prompt, E width.

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from longlive.attention.window import SlotWindow, WindowPlan, check_window
from longlive.errors import UserError
from longlive.geometry import Geometry
from longlive.models.sizes import DiTConfig
from longlive.rollout.state import without_dropped

Unit = Literal["gemm", "attention", "conv"]
"""Which rate bounds a product; a device runs each kind at its own."""


@dataclass(frozen=True, slots=True)
class Product:
    """Products of one kind.

    Attributes:
        unit: Which rate bounds them.
        flops: Two for each multiply-add.
        bytes: Operands and results, each once.
    """

    unit: Unit
    flops: int
    bytes: int

    def __add__(self, other: "Product") -> "Product":
        if self.unit != other.unit:
            raise ValueError(f"{self.unit} and {other.unit} run at different rates")
        return Product(self.unit, self.flops + other.flops, self.bytes + other.bytes)

    def __mul__(self, times: int) -> "Product":
        return Product(self.unit, self.flops * times, self.bytes * times)


@dataclass(frozen=True, slots=True)
class Work:
    """Products by kind. Adds and scales: four steps and a context update are ``4 * step + update``.

    Attributes:
        kinds: Kind of work, in words, to its products.
    """

    kinds: Mapping[str, Product] = field(default_factory=dict)

    @property
    def flops(self) -> int:
        """Two for each multiply-add, all kinds together."""
        return sum(product.flops for product in self.kinds.values())

    @property
    def bytes(self) -> int:
        """Operands and results, all kinds together."""
        return sum(product.bytes for product in self.kinds.values())

    def __add__(self, other: "Work") -> "Work":
        kinds = dict(self.kinds)
        for kind, product in other.kinds.items():
            kinds[kind] = kinds[kind] + product if kind in kinds else product
        return Work(kinds)

    def __mul__(self, times: int) -> "Work":
        return Work({kind: product * times for kind, product in self.kinds.items()})

    __rmul__ = __mul__


@dataclass(frozen=True, slots=True)
class PassShape:
    """One call of the transformer, in tokens.

    Attributes:
        queries: Tokens of the call, L.
        keys: Tokens each of them sees, its own call's included, S.
        keys_only: Whether only keys and values are wanted: then the last layer computes nothing
            else, and the head nothing at all.
    """

    queries: int
    keys: int
    keys_only: bool = False

    @property
    def pairs(self) -> int:
        """Attention pairs of one head of one layer, ``L S``."""
        return self.queries * self.keys


def pass_shapes(geometry: Geometry, window: int, sink: int) -> list[PassShape]:
    """Shapes of a denoising step in block 0, 1, 2, ... until the window is full.

    Args:
        geometry: Size of a latent frame and of a block.
        window: Latent frames a query can see, sink and own block included.
        sink: First latent frames that are never evicted.

    Returns:
        One shape a block; the last is that of every later block, the steady pass.

    Raises:
        UserError: If the window has no room for sink and block.
    """
    slots = _empty_window(geometry, window, sink)
    shapes: list[PassShape] = []
    while slots.filled < window:
        shapes.append(_shape(_next_block(slots, geometry), geometry))
    return shapes


def context_update_shape(step: PassShape) -> PassShape:
    """Shape of the context update that follows the denoising steps of shape ``step``."""
    return replace(step, keys_only=True)


def recache_shape(
    geometry: Geometry, window: int, sink: int, *, keeps_sink: bool = True, unread: bool = False
) -> PassShape:
    """Shape of the recache of a full window, a block or more after its first frames left it.

    Args:
        geometry: Size of a latent frame and of a block.
        window: Latent frames a query can see.
        sink: First latent frames that are never evicted.
        keeps_sink: Whether the sink keeps the keys of the first prompt.
        unread: Whether the frames whose keys a protected sink drops are run all the same, as the
            official code does.

    Raises:
        UserError: If the window has no room for sink and block.
    """
    slots = _empty_window(geometry, window, sink)
    while slots.end <= window:
        _next_block(slots, geometry)
    plan = slots.plan(slots.end - window, window, protects_sink=keeps_sink)
    shape = _shape(plan if unread else without_dropped(plan), geometry)
    return replace(shape, keys_only=True)


def pass_work(config: DiTConfig, shape: PassShape, value_bytes: int) -> Work:
    """Count one call of the transformer.

    In multiply-adds, for each layer: queries, keys and values ``3 L E^2``, self-attention's output
    ``L E^2``, cross-attention's queries and output ``2 L E^2`` (its keys are computed once a
    prompt, see :func:`text_keys_work`), feed-forward ``2 L E ffn``, self-attention ``2 L S E``,
    cross-attention ``2 L M E``. Beside the layers: patches in and out, and one timestep.

    Args:
        config: Shape of the transformer.
        shape: Tokens of the call.
        value_bytes: Bytes of a number.
    """
    rows, width, layers = shape.queries, config.width, config.layers
    values = config.patch**2 * config.latent_channels
    full = layers - 1 if shape.keys_only else layers

    def linear(rows: int, *widths: int) -> Product:
        return _linear(rows, widths, value_bytes)

    qkv = linear(rows, width, 3 * width) * full
    ends = linear(rows, values, width) + linear(1, config.frequency_width, width, width, 6 * width)
    if shape.keys_only:
        qkv += linear(rows, width, 2 * width)
    else:
        ends += linear(rows, width, values)
    return Work(
        {
            "qkv": qkv,
            "attention output": linear(rows, width, width) * full,
            "cross-attention q and output": linear(rows, width, width) * (2 * full),
            "feed-forward": linear(rows, width, config.ffn_width, width) * full,
            "embeddings and head": ends,
            "self-attention": _attention(rows, shape.keys, width, value_bytes) * full,
            "cross-attention": _attention(rows, config.text_len, width, value_bytes) * full,
        }
    )


def text_keys_work(config: DiTConfig, value_bytes: int) -> Work:
    """Count what the transformer computes once a prompt: text embedding, and text keys and values.

    ``M (text E + E^2) + 2 layers M E^2`` multiply-adds, with M the padded length.
    """
    embedding = _linear(
        config.text_len, (config.text_width, config.width, config.width), value_bytes
    )
    keys = _linear(config.text_len, (config.width, 2 * config.width), value_bytes)
    return Work({"text keys and values": embedding + keys * config.layers})


def steps_work(config: DiTConfig, step: PassShape, steps: int, value_bytes: int) -> Work:
    """Count the transformer's share of a block: ``steps`` passes and the context update.

    Raises:
        UserError: If there is no step.
    """
    if steps < 1:
        raise UserError(f"a block takes at least one denoising step, got {steps}")
    update = pass_work(config, context_update_shape(step), value_bytes)
    return steps * pass_work(config, step, value_bytes) + update


def kv_cache_bytes(config: DiTConfig, geometry: Geometry, window: int, value_bytes: int) -> int:
    """Bytes of the keys and values of a window: ``2 layers S E`` numbers."""
    tokens = window * geometry.tokens_per_latent_frame
    return 2 * config.layers * tokens * config.width * value_bytes


def _empty_window(geometry: Geometry, window: int, sink: int) -> SlotWindow:
    check_window(window, sink, geometry.block_latent_frames)
    return SlotWindow(window, window, sink)


def _next_block(slots: SlotWindow, geometry: Geometry) -> WindowPlan:
    plan = slots.plan(slots.end, geometry.block_latent_frames)
    slots.commit(plan)
    return plan


def _shape(plan: WindowPlan, geometry: Geometry) -> PassShape:
    tokens = geometry.tokens_per_latent_frame
    return PassShape(plan.frames * tokens, len(plan.read_slots) * tokens)


def _linear(rows: int, widths: tuple[int, ...], value_bytes: int) -> Product:
    """Linears one after another, from the first width to the last."""
    total = Product("gemm", 0, 0)
    for inputs, outputs in zip(widths, widths[1:], strict=False):
        weights = (inputs + 1) * outputs
        moved = rows * inputs + weights + rows * outputs
        total += Product("gemm", 2 * rows * inputs * outputs, moved * value_bytes)
    return total


def _attention(queries: int, keys: int, width: int, value_bytes: int) -> Product:
    """``q k^T`` and ``p v``, the scores never leaving the chip."""
    moved = 2 * (queries + keys) * width
    return Product("attention", 4 * queries * keys * width, moved * value_bytes)
