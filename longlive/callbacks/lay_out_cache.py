"""The KV cache in another order in memory."""

import lightning.pytorch as pl

from longlive.attention.kv_cache import KVLayout
from longlive.callbacks.optimization import Optimization
from longlive.rollout.hooks import MakeCaches, WrapOrder
from longlive.rollout.state import Caches, RolloutSpec


class LayOutCache(Optimization):
    """Lays out the keys and values of the video for the attention kernel.

    Head-major, the tokens that one head reads are one piece of memory; token-major, a token is
    written in one piece. Shapes stay, only strides change. Numerics: the kernels are the same, but
    one may take another path for other strides.

    Args:
        layout: ``head-major`` or ``token-major``.
        required: As for every optimization; nothing is needed.
    """

    # After whoever gives each process its own heads, before graphs hold addresses.
    wrap_order = WrapOrder.COMPILE

    def __init__(self, layout: KVLayout = "head-major", required: bool = True) -> None:
        super().__init__(required)
        self.layout: KVLayout = layout

    def configure_caches(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, make: MakeCaches
    ) -> MakeCaches:
        def made(spec: RolloutSpec) -> Caches:
            caches = make(spec)
            caches.video.lay_out(self.layout)
            return caches

        return made
