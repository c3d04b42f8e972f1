"""Where the files of each component lie below a models folder, and how to get what is missing.

The folders of the publishers are understood as they are downloaded, beside our own converted one:

    Wan2.1-T2V-1.3B/    config.json  diffusion_pytorch_model.safetensors  Wan2.1_VAE.pth
                        models_t5_umt5-xxl-enc-bf16.pth  google/umt5-xxl/tokenizer.json
    LongLive-1.3B/      models/longlive_base.pt  models/lora.pt
    longlive-1.3b/      config.json  longlive.safetensors
    taew2_1.pth
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from longlive.errors import UserError
from longlive.models.sizes import DiTConfig

DEFAULT_ROOT = Path("models")

# The empty prefix lets a search root be the publisher's folder itself.
_WAN = ("Wan2.1-T2V-1.3B", "wan_models/Wan2.1-T2V-1.3B", "")
_WAN_14B = ("Wan2.1-T2V-14B", "wan_models/Wan2.1-T2V-14B", "")
_WAN_ANY = (*_WAN[:-1], *_WAN_14B[:-1], "")
_LONGLIVE = ("LongLive-1.3B/models", "longlive_models/models", "LongLive/models", "models", "")
_CONVERTED = ("longlive-1.3b", "")
_TAEHV = ("", "taehv")


@dataclass(frozen=True, slots=True)
class Component:
    """One thing that has a file.

    Attributes:
        what: Its name in messages.
        files: File names; the first is the usual one.
        folders: Folders below the root that may hold it; the first is the usual one.
        size_bytes: Size of the published file.
        fetch: What to do to get it, as an order.
        is_folder: The folder of the file is wanted, not the file.
    """

    what: str
    files: tuple[str, ...]
    folders: tuple[str, ...]
    size_bytes: int
    fetch: str
    is_folder: bool = False

    def find(self, root: Path) -> Path | None:
        """Return where it is below ``root``, or None."""
        for folder in self.folders:
            for file in self.files:
                path = root / folder / file
                if path.is_file():
                    return path.parent if self.is_folder else path
        return None

    @property
    def description(self) -> str:
        """What it is, where it usually lies, and how large it is."""
        usual = Path(self.folders[0]) / self.files[0]
        return f"{self.what} ({usual.as_posix()}, {format_size(self.size_bytes)})"


_TRANSFORMER_FILES = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
)

COMPONENTS: dict[str, Component] = {
    "converted": Component(
        what="converted LongLive weights",
        files=("longlive.safetensors",),
        folders=_CONVERTED,
        size_bytes=2_838_000_000,
        fetch="run `longlive convert`",
    ),
    "longlive_base": Component(
        what="LongLive base weights",
        files=("longlive_base.pt",),
        folders=_LONGLIVE,
        size_bytes=5_676_334_208,
        fetch="run `longlive download longlive-1.3b`",
    ),
    "longlive_lora": Component(
        what="LongLive LoRA",
        files=("lora.pt",),
        folders=_LONGLIVE,
        size_bytes=2_800_056_690,
        fetch="run `longlive download longlive-1.3b`",
    ),
    "wan-1.3b": Component(
        what="Wan2.1 1.3B transformer",
        files=_TRANSFORMER_FILES,
        folders=_WAN,
        size_bytes=5_676_000_000,
        fetch="run `longlive download wan-1.3b`",
    ),
    "wan-14b": Component(
        what="Wan2.1 14B transformer",
        files=tuple(reversed(_TRANSFORMER_FILES)),
        folders=_WAN_14B,
        size_bytes=57_154_000_000,
        fetch="run `longlive download wan-14b`",
    ),
    "text_encoder": Component(
        what="UMT5 text encoder",
        files=("models_t5_umt5-xxl-enc-bf16.pth",),
        folders=_WAN_ANY,
        size_bytes=11_362_000_000,
        fetch="run `longlive download longlive-1.3b`",
    ),
    "tokenizer": Component(
        what="UMT5 tokenizer",
        files=("google/umt5-xxl/tokenizer.json", "tokenizer.json"),
        folders=_WAN_ANY,
        size_bytes=17_000_000,
        fetch="run `longlive download longlive-1.3b`",
        is_folder=True,
    ),
    "vae": Component(
        what="Wan2.1 VAE",
        files=("Wan2.1_VAE.pth",),
        folders=_WAN_ANY,
        size_bytes=507_600_000,
        fetch="run `longlive download longlive-1.3b`",
    ),
    "taehv": Component(
        what="TAEHV tiny decoder",
        files=("taew2_1.pth", "taew2_1.safetensors"),
        folders=_TAEHV,
        size_bytes=23_000_000,
        fetch="put taew2_1.pth of https://github.com/madebyollin/taehv there",
    ),
}


def locate(names: Iterable[str], root: str | Path = DEFAULT_ROOT) -> dict[str, Path]:
    """Find several components below one folder.

    Args:
        names: Keys of ``COMPONENTS``.
        root: Folder that holds the publishers' folders, or is one of them.

    Returns:
        Name to path of the file; of the folder for the tokenizer.

    Raises:
        UserError: If any is missing. One line lists every missing file, its size and what to do.
    """
    root = Path(root)
    found = {name: COMPONENTS[name].find(root) for name in names}
    missing = [COMPONENTS[name] for name, path in found.items() if path is None]
    if missing:
        orders = list(dict.fromkeys(component.fetch for component in missing))
        raise UserError(
            f"not found under {root}: {', '.join(c.description for c in missing)}; "
            f"{' and '.join(orders)}"
        )
    return {name: path for name, path in found.items() if path is not None}


def survey(root: str | Path = DEFAULT_ROOT) -> dict[str, Path | None]:
    """Return where each known component is below ``root``, None for those that are not there."""
    return {name: component.find(Path(root)) for name, component in COMPONENTS.items()}


def config_beside(weights: Path) -> DiTConfig | None:
    """Read the ``config.json`` in the folder of a weight file; None if there is none.

    Raises:
        UserError: If it is not a transformer's configuration.
    """
    path = weights.parent / "config.json"
    if not path.is_file():
        return None
    try:
        return DiTConfig.from_official(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{path} does not describe a transformer ({error}); fetch it again"
        ) from error


def format_size(size_bytes: int) -> str:
    """Return a size in decimal units, as download pages show it."""
    if size_bytes >= 1e9:
        return f"{size_bytes / 1e9:.1f} GB"
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 1e6 else f"{size_bytes / 1e3:.0f} kB"
