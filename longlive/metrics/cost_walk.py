"""FLOPs and bytes of networks without a closed form, counted from the calls they really make.

The network is built and run on the meta device, where tensors have a shape and no content, and
every product that reaches the dispatcher is counted. A change of the network therefore changes the
count; there is no formula to forget.
"""

# Shape suffixes: B batch, F latent frames, C channels, H W latent rows and columns.

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from longlive.geometry import Geometry
from longlive.metrics.cost import Product, Unit, Work
from longlive.models.text_encoder import UMT5Config, UMT5Encoder
from longlive.models.vae import WanVAE
from longlive.models.vae_networks import DecoderState, VAEConfig

_META = torch.device("meta")
_FUSED_ATTENTION = torch.ops.aten.scaled_dot_product_attention
_UNITS: dict[Any, Unit] = {
    torch.ops.aten.convolution: "conv",
    torch.ops.aten.mm: "gemm",
    torch.ops.aten.addmm: "gemm",
    # Both networks multiply batches of matrices in their attention alone.
    torch.ops.aten.bmm: "attention",
    torch.ops.aten.baddbmm: "attention",
}
_WORDS: dict[Unit, str] = {"gemm": "linear", "attention": "attention", "conv": "convolution"}


def count_work(run: Callable[[], object], name: str) -> Work:
    """Count the products of a call.

    Fused attention counts as one product, whose scores are never written. Attention that is spelled
    out as two products reads and writes them.

    Args:
        run: What to count. Gradients are off.
        name: Whose work it is; the kinds begin with it, as in ``vae convolution``.
    """
    counter = _ProductCounter()
    with torch.inference_mode(), counter:
        run()
    return Work({f"{name} {_WORDS[unit]}": product for unit, product in counter.products.items()})


def vae_decode_work(
    config: VAEConfig,
    geometry: Geometry,
    latent_frames: int,
    dtype: torch.dtype,
    *,
    is_first: bool = False,
) -> Work:
    """Count one call of the streaming VAE decoder.

    Args:
        config: Size of the VAE.
        geometry: Size of a latent frame.
        latent_frames: Latent frames of the call.
        dtype: Type of weights and activations.
        is_first: Whether the stream starts with this call: its first latent frame becomes one
            frame, not four.
    """

    def latents(frames: int) -> Tensor:
        shape = (1, frames, config.latent_channels, geometry.latent_height, geometry.latent_width)
        return torch.empty(shape, dtype=dtype, device=_META)

    with _META:
        vae = WanVAE(config).to(dtype)
    state = DecoderState()
    if not is_first:
        with torch.inference_mode():
            _, state = vae.decode_step(latents(1), state)
    return count_work(lambda: vae.decode_step(latents(latent_frames), state), "vae")


def text_encoder_work(config: UMT5Config, tokens: int, dtype: torch.dtype) -> Work:
    """Count the text encoder over ``tokens`` positions, those of a prompt or of its padding."""
    with _META:
        encoder = UMT5Encoder(config).to(dtype)
        ids, mask = (torch.zeros(1, tokens, dtype=torch.int64) for _ in range(2))
    return count_work(lambda: encoder.encode(ids, mask), "text encoder")


class _ProductCounter(TorchDispatchMode):
    """Adds up products by the rate that bounds them."""

    def __init__(self) -> None:
        super().__init__()
        self.products: dict[Unit, Product] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        packet, kwargs = func.overloadpacket, kwargs or {}
        if packet is _FUSED_ATTENTION:
            out = func(*args, **kwargs)
            keys = args[1].shape[-2]
            self._add("attention", 2 * keys * (args[0].numel() + out.numel()), (args, kwargs, out))
            return out
        if packet not in _UNITS:
            # Without gradients composite operations arrive whole; the products are inside.
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        if packet in _UNITS:
            flops = flop_registry[packet](*args, **kwargs, out_val=out)
            self._add(_UNITS[packet], flops, (args, kwargs, out))
        return out

    def _add(self, unit: Unit, flops: int, operands: object) -> None:
        moved = sum(
            leaf.numel() * leaf.element_size()
            for leaf in tree_leaves(operands)
            if isinstance(leaf, Tensor)
        )
        product = Product(unit, flops, moved)
        before = self.products.get(unit)
        self.products[unit] = product if before is None else before + product
