"""A session as JSON: everything that makes the same latents again."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, cast

import torch

from longlive import __version__
from longlive.data.sessions import FORMAT, VERSION, BranchTree
from longlive.geometry import FPS
from longlive.live.recipes import Setup
from longlive.modules.components import Components
from longlive.modules.longlive import LongLive

CallbackConfig = Mapping[str, Any]
"""``class_path`` and ``init_args`` of a callback."""


def session_record(
    model: LongLive,
    tree: BranchTree,
    setup: Setup,
    callbacks: Sequence[CallbackConfig] = (),
) -> dict[str, Any]:
    """Describe a session, for :func:`longlive.data.sessions.read_session`.

    Args:
        model: What made it; its weights are hashed, once.
        tree: The branches.
        setup: What the rollout was built for.
        callbacks: Configuration of the optimizations, which may change how numbers are rounded.
    """
    parts = cast(Components, model.prepare().parts)
    block = model.block_latent_frames
    longest = max((branch.blocks for branch in tree.branches), default=0)
    init_args = {
        **model.settings,
        **setup.settings(),
        "seconds": None,
        "latent_frames": max(1, longest) * block,
    }
    kind = type(model)
    return {
        "format": FORMAT,
        "version": VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"longlive": __version__, "torch": str(torch.__version__)},
        "device": str(next(parts.dit.parameters()).device),
        "dtype": str(parts.dit.dtype_of_weights).removeprefix("torch."),
        "weights": {
            "kind": parts.kind,
            "source": parts.source,
            "hash": model.weights_hash(),
        },
        "config": {
            "model": {
                "class_path": f"{kind.__module__}.{kind.__qualname__}",
                "init_args": init_args,
            },
            "callbacks": [dict(callback) for callback in callbacks],
        },
        "block_latent_frames": block,
        "fps": FPS,
        "branches": tree.as_list(),
    }
