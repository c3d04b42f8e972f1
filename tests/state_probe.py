"""What a training run on several processes holds, put together: at its start and at its end."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


class StateProbe(pl.Callback):
    """Writes weights and optimizer states to ``NAME-start.pt`` and ``NAME.pt``."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    def on_train_start(self, trainer, pl_module):
        self._write(trainer, pl_module, self.path.with_stem(f"{self.path.stem}-start"))

    def on_train_end(self, trainer, pl_module):
        self._write(trainer, pl_module, self.path)

    def _write(self, trainer: pl.Trainer, pl_module: pl.LightningModule, path: Path) -> None:
        state: dict[str, Any] = {"step": trainer.global_step}
        state["weights"] = {name: whole(x) for name, x in pl_module.named_parameters()}
        state["optimizers"] = {}
        for number, optimizer in enumerate(trainer.optimizers):
            weights = (x for group in optimizer.param_groups for x in group["params"])
            for place, weight in enumerate(weights):
                for name, value in optimizer.state[weight].items():
                    state["optimizers"][f"{number}.{place}.{name}"] = whole(value)
        if trainer.is_global_zero:
            torch.save(state, path)


def whole(x: Tensor) -> Tensor:
    return (x.full_tensor() if isinstance(x, DTensor) else x).detach().clone()
