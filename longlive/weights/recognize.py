"""What a set of tensors is the weights of, told from a few names and shapes."""

from collections.abc import Iterable, Mapping

from longlive.models.sizes import SIZES
from longlive.models.text_encoder import TEXT_ENCODER_SIZES

Shapes = Mapping[str, tuple[int, ...]]


def recognize(shapes: Shapes) -> str | None:
    """Name the model that tensors of these names and shapes belong to.

    Returns:
        ``wan-1.3b weights`` and the like, or None for something unheard of.
    """
    if any(".lora_A." in name or ".lora_down." in name for name in shapes):
        return "LoRA weights"
    if "patch_embedding.weight" in shapes and "head.head.weight" in shapes:
        return _recognize_transformer(shapes)
    if "condition_embedder.time_embedder.linear_1.weight" in shapes:
        return "transformer weights in the diffusers layout"
    if "token_embedding.weight" in shapes:
        return _recognize_text_encoder(shapes)
    if "encoder.conv1.weight" in shapes and "decoder.conv1.weight" in shapes:
        return "video VAE weights"
    return None


def layer_count(names: Iterable[str]) -> int:
    """Return how many transformer layers the names speak of."""
    parts = (name.split(".") for name in names)
    return len({part[1] for part in parts if len(part) > 1 and part[0] == "blocks"})


def _recognize_transformer(shapes: Shapes) -> str:
    width, layers = shapes["patch_embedding.weight"][0], layer_count(shapes)
    for name, config in SIZES.items():
        if (config.width, config.layers) == (width, layers):
            return f"{name} weights"
    return f"transformer weights of width {width} with {layers} layers"


def _recognize_text_encoder(shapes: Shapes) -> str:
    vocab, width = shapes["token_embedding.weight"]
    for name, config in TEXT_ENCODER_SIZES.items():
        if (config.vocab, config.width) == (vocab, width):
            return f"{name} weights" if name != "tiny" else "tiny text encoder weights"
    return f"text encoder weights of width {width} with {vocab} tokens"
