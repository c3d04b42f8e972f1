"""One CUDA graph for each kind of pass of the transformer.

A pass is some thousand kernels, and the host needs as long to launch them as a small one to run. A
graph launches them at once. What differs between two passes of a kind is data on the device (slots,
positions, timestep, latents, the prompt's keys) and is copied into the graph's own inputs; what is
fixed in a graph is :class:`longlive.rollout.rehearsal.PassKind`. While the window fills, every
length is a kind of its own; once it is full, a denoising step is one kind, a context update another
and a recache a third. The head of the ring moves with every block, but slots are only ever written
through index tensors, so no kind depends on where it stands.

A graph also holds the addresses of the caches and of the weights. The caches of a rollout that has
ended are handed to the next one of the same shape, with their graphs; two rollouts at a time get a
set each.
"""

# Shape suffixes: B batch, F latent frames, C channels, H W latent rows and columns, S slots read.

import logging
import weakref
from collections.abc import Callable
from dataclasses import fields, replace

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from longlive.callbacks.graph_recorder import GraphRecorder, Recorder, Recording
from longlive.callbacks.optimization import Optimization, device_of, parts_of
from longlive.models.dit import DiT
from longlive.rollout.denoiser import Denoiser
from longlive.rollout.hooks import MakeCaches, WrapOrder
from longlive.rollout.rehearsal import PassKind, kind_of, rehearsal_key
from longlive.rollout.state import Caches, RolloutSpec, RolloutState, StepInputs

log = logging.getLogger(__name__)


class CapturedPass:
    """One kind of pass, recorded.

    Args:
        denoiser: Has run a pass of this kind before.
        x_BFCHW: Latents of that pass.
        inputs: Its other inputs.
        recorder: Records it.

    Raises:
        RuntimeError: If it cannot be recorded.
    """

    def __init__(
        self, denoiser: Denoiser, x_BFCHW: Tensor, inputs: StepInputs, recorder: Recorder
    ) -> None:
        self._x_BFCHW = x_BFCHW.clone()
        read = inputs.read
        self._inputs = replace(
            inputs,
            timestep_BF=inputs.timestep_BF.clone(),
            positions_F=inputs.positions_F.clone(),
            write_slots_F=inputs.write_slots_F.clone(),
            read=read if isinstance(read, int) else read.clone(),
        )
        self._recording: Recording = recorder.record(lambda: denoiser(self._x_BFCHW, self._inputs))

    def __call__(self, x_BFCHW: Tensor, inputs: StepInputs) -> Tensor | None:
        self._x_BFCHW.copy_(x_BFCHW)
        for own, new in zip(_tensors_of(self._inputs), _tensors_of(inputs), strict=True):
            own.copy_(new)
        self._recording.replay()
        out: Tensor | None = self._recording.out
        # The next replay overwrites it.
        return None if out is None else out.clone()


def _tensors_of(inputs: StepInputs) -> list[Tensor]:
    values = (getattr(inputs, field.name) for field in fields(inputs))
    return [value for value in values if isinstance(value, Tensor)]


class GraphSet:
    """The graphs of one set of caches.

    Args:
        caches: Whose addresses the graphs hold.
        key: Shape of the rollouts that fit.
        weights: Parameters whose addresses the graphs hold; kept alive with them.
        recorder: Records the graphs.

    Attributes:
        passes: What is recorded.
        failure: Why nothing more is recorded, once something could not be.
    """

    def __init__(
        self, caches: Caches, key: object, weights: list[nn.Parameter], recorder: Recorder
    ) -> None:
        self.caches = caches
        self.key = key
        self.weights = weights
        self.recorder = recorder
        self.passes: dict[PassKind, CapturedPass] = {}
        self.failure = ""
        self._is_reserved = False
        self._user: weakref.ref[CapturedDenoiser] | None = None
        self._text = caches.text.k_BMND

    @property
    def is_free(self) -> bool:
        """Whether no rollout uses the caches."""
        return not self._is_reserved and (self._user is None or self._user() is None)

    def reserve(self) -> None:
        """A rollout is being set up with the caches."""
        self._is_reserved = True

    def lend(self, user: "CapturedDenoiser") -> None:
        """The caches are used while ``user`` exists, or until they are given back."""
        self._user, self._is_reserved = weakref.ref(user), False

    def give_back(self) -> None:
        """The rollout has ended, or was not set up after all."""
        self._user, self._is_reserved = None, False

    def check_text(self) -> None:
        """Forget the graphs if the text cache has moved, for a prompt of another shape."""
        if self.caches.text.k_BMND is not self._text:
            self._text = self.caches.text.k_BMND
            self.passes.clear()

    def fits(self, key: object, weights: list[nn.Parameter]) -> bool:
        """Whether a rollout may have these caches and graphs."""
        same_weights = len(weights) == len(self.weights) and all(
            mine is theirs for mine, theirs in zip(self.weights, weights, strict=True)
        )
        return self.is_free and self.key == key and same_weights


class CapturedDenoiser:
    """Replays what is recorded, and records what is not.

    Args:
        denoiser: The network call.
        graphs: Where the recordings are.
        most_graphs: How many there may be.
    """

    def __init__(self, denoiser: Denoiser, graphs: GraphSet, most_graphs: int) -> None:
        self.graphs = graphs
        self._denoiser = denoiser
        self._most_graphs = most_graphs

    def __call__(self, x_BFCHW: Tensor, inputs: StepInputs) -> Tensor | None:
        if torch.is_grad_enabled():
            return self._denoiser(x_BFCHW, inputs)
        self.graphs.check_text()
        kind = kind_of(x_BFCHW, inputs)
        captured = self.graphs.passes.get(kind)
        if captured is not None:
            return captured(x_BFCHW, inputs)
        # It runs as it is first: kernels are compiled and tuned now, which no graph can hold.
        out = self._denoiser(x_BFCHW, inputs)
        if not self.graphs.failure:
            self._capture(kind, x_BFCHW, inputs)
        return out

    def _capture(self, kind: PassKind, x_BFCHW: Tensor, inputs: StepInputs) -> None:
        graphs = self.graphs
        if len(graphs.passes) >= self._most_graphs:
            graphs.failure = f"there are {self._most_graphs} graphs already, the most allowed"
        else:
            try:
                graphs.passes[kind] = CapturedPass(self._denoiser, x_BFCHW, inputs, graphs.recorder)
            except RuntimeError as error:
                graphs.failure = " ".join(str(error).split())
        if graphs.failure:
            log.warning("passes of other shapes run without a graph: %s", graphs.failure)


class CaptureDenoiser(Optimization):
    """Replays each pass as one CUDA graph.

    Numerics: exact, the kernels are the same. A pass that cannot be captured runs as it is, and the
    reason is logged once. One instance serves one list of callbacks.

    Args:
        most_graphs: Kinds of passes that are captured; others run as they are. A window of 12 in
            blocks of 3 has 12 kinds; under global attention each block is a kind.
        rehearses: Whether a rollout begins by capturing every kind; if not, each is captured when
            it first appears, and the video waits.
        required: Whether it is an error if there is no CUDA device.
    """

    wrap_order = WrapOrder.CAPTURE

    def __init__(
        self, most_graphs: int = 32, rehearses: bool = True, required: bool = True
    ) -> None:
        super().__init__(required)
        self.most_graphs = most_graphs
        self.rehearses = rehearses
        self._sets: list[GraphSet] = []
        self._reserved: GraphSet | None = None
        self._recorder: Callable[[torch.device], Recorder] = GraphRecorder

    def missing(self, device: torch.device) -> str | None:
        return None if device.type == "cuda" else f"a CUDA device, and this is {device.type}"

    def configure_rollout(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, spec: RolloutSpec
    ) -> RolloutSpec:
        if not self.rehearses or not self.is_usable(pl_module):
            return spec
        is_known = any(
            graphs.fits(rehearsal_key(spec), _weights(pl_module)) for graphs in self._sets
        )
        return spec if is_known else spec.rehearsed()

    def configure_caches(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, make: MakeCaches
    ) -> MakeCaches:
        if not self.is_usable(pl_module):
            return make
        return lambda spec: self._reserve(pl_module, spec, make).caches

    def configure_denoiser(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, denoiser: Denoiser
    ) -> Denoiser:
        reserved, self._reserved = self._reserved, None
        if reserved is None:
            return denoiser
        captured = CapturedDenoiser(denoiser, reserved, self.most_graphs)
        reserved.lend(captured)
        return captured

    def on_rollout_end(
        self, trainer: pl.Trainer | None, pl_module: pl.LightningModule, state: RolloutState
    ) -> None:
        for graphs in self._sets:
            if graphs.caches.video is state.cache:
                graphs.give_back()

    def _reserve(
        self, pl_module: pl.LightningModule, spec: RolloutSpec, make: MakeCaches
    ) -> GraphSet:
        if self._reserved is not None:
            self._reserved.give_back()
        key, weights = rehearsal_key(spec), _weights(pl_module)
        found = next((graphs for graphs in self._sets if graphs.fits(key, weights)), None)
        if found is None:
            # Idle caches of another shape would only take up memory.
            self._sets = [graphs for graphs in self._sets if not graphs.is_free]
            found = GraphSet(make(spec), key, weights, self._recorder(device_of(pl_module)))
            self._sets.append(found)
        else:
            found.caches.video.clear()
        found.reserve()
        self._reserved = found
        return found


def _weights(pl_module: pl.LightningModule) -> list[nn.Parameter]:
    weights: list[nn.Parameter] = []
    waiting: list[nn.Module] = list(parts_of(pl_module, DiT))
    # `parameters` also looks for weights that are shared, which takes some milliseconds of the
    # first frame.
    while waiting:
        module = waiting.pop()
        weights.extend(weight for weight in module._parameters.values() if weight is not None)
        waiting.extend(child for child in module._modules.values() if child is not None)
    return weights
