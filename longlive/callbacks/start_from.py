"""Training that goes on from weights of the embedded model's layout."""

import lightning.pytorch as pl

from longlive.errors import UserError
from longlive.models.vae import WanVAE
from longlive.modules.pretraining import TextToVideoPretraining
from longlive.weights.embedded import load_dit, load_text_encoder, load_vae


class StartFrom(pl.Callback):
    """Loads weights into the module before it is trained.

    A checkpoint that is resumed replaces them.

    Args:
        folder: Of the embedded model's layout; None takes the weights in the package.
    """

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Load the weights.

        Raises:
            UserError: If they are of another size, or not for this module.
        """
        if stage != "fit":
            return
        try:
            if isinstance(pl_module, WanVAE):
                pl_module.load_state_dict(load_vae(self.folder).state_dict())
            elif isinstance(pl_module, TextToVideoPretraining):
                pl_module.dit.load_state_dict(load_dit(self.folder).state_dict())
                pl_module.text_encoder.load_state_dict(load_text_encoder(self.folder).state_dict())
            else:
                raise UserError(
                    f"StartFrom cannot start a {type(pl_module).__name__}: leave it out"
                )
        except RuntimeError as error:
            where = self.folder or "the package"
            raise UserError(
                f"the weights in {where} are of another size: set model.size to theirs"
            ) from error
