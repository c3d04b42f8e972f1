"""One golden case: its inputs, its tolerance, and what was compared so far."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from longlive.weights.loading import load_strict
from longlive.weights.state_dicts import read_state_dict

GRADIENT_SHARE = 5e-5
"""A gradient may be off by this share of its largest value; the manifests say so in words."""


@dataclass
class Case:
    """One golden case, and what was compared so far."""

    folder: Path
    name: str
    manifest: dict[str, Any]
    tensors: dict[str, Tensor]
    dtype: torch.dtype
    worst: float = 0.0
    worst_key: str = "-"
    compared: set[str] = field(default_factory=set)

    @classmethod
    def read(cls, path: Path, dtype: torch.dtype) -> "Case":
        tensors = load_file(path.with_suffix(".safetensors"))
        return cls(path.parent, path.stem, json.loads(path.read_text()), tensors, dtype)

    @property
    def config(self) -> dict[str, Any]:
        return dict(self.manifest["config"])

    def input(self, key: str) -> Tensor:
        value = self.tensors[f"in.{key}"]
        return value.to(self.dtype) if value.is_floating_point() else value

    def weights(self, key: str) -> dict[str, Tensor]:
        return read_state_dict(self.folder / self.manifest["weights"][key])

    def load(self, module: nn.Module, key: str = "model") -> None:
        load_strict(module, self.weights(key), self.manifest["weights"][key], dtype=self.dtype)
        module.eval()

    def compare(self, key: str, ours: Tensor) -> None:
        """Compare with ``out.<key>``; a key the case does not hold is ignored."""
        golden = self.tensors.get(f"out.{key}")
        if golden is None:
            return
        self.compared.add(f"out.{key}")
        ours = ours.detach()
        if golden.is_floating_point():
            tolerance = self._tolerance(key, golden)
            limit = tolerance["atol"] + tolerance["rtol"] * golden.abs()
            same_shape = ours.shape == golden.shape
            ratio = float(((ours - golden).abs() / limit).max()) if same_shape else float("inf")
        else:
            ratio = 0.0 if torch.equal(ours, golden.to(ours.dtype)) else float("inf")
        # A NaN must never pass.
        if not ratio <= self.worst:
            self.worst, self.worst_key = ratio, key

    def _tolerance(self, key: str, golden: Tensor) -> dict[str, float]:
        tolerance = self.manifest["tolerance"]
        if key.endswith("param_grad_norms") and "out.*param_grad_norms" in tolerance:
            return dict(tolerance["out.*param_grad_norms"])
        if ".grad." in key or key.endswith("image_grad"):
            return {"rtol": 0.0, "atol": GRADIENT_SHARE * float(golden.abs().max())}
        if key.startswith("latent_frame"):
            special = [value for name, value in tolerance.items() if "latent_frame" in name]
            return dict(special[0]) if special else tolerance
        return dict(tolerance)

    def missed(self) -> list[str]:
        return sorted(
            key for key in self.tensors if key.startswith("out.") and key not in self.compared
        )


@contextmanager
def outputs_of(modules: dict[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Collect what modules return while the context is open, by name."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            seen[name] = output

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    yield seen
    for handle in handles:
        handle.remove()
