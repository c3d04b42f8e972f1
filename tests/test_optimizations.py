"""Every overlay in ``configs/opt`` and ``configs/switch`` keeps what its first line promises.

``# numerics: exact``: the same numbers. ``# numerics: bounded 1e-4``: latents and frames of every
block are within that relative L2 distance of the eager ones in float32, and in bfloat16 no further
from float32 than the eager ones are. ``# numerics: different``: nothing is promised.
"""

import ast
import re
from collections import deque
from collections.abc import Iterator, Sequence
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import pytest
import torch
import yaml
from nano_model import SETTINGS, write_nano_model
from torch import Tensor
from torch._dynamo.utils import counters

from longlive.errors import UserError
from longlive.modules.longlive import LongLive
from longlive.rollout.hooks import RolloutCallback
from longlive.rollout.prompts import PromptTimeline
from longlive.rollout.stream import Block

ROOT = Path(__file__).parents[1]
OVERLAYS = sorted(
    path for folder in ("opt", "switch") for path in (ROOT / "configs" / folder).glob("*.yaml")
)
CALLBACKS = ROOT / "longlive" / "callbacks"
NUMERICS = re.compile(r"# numerics: (exact|different|bounded (\d+(?:\.\d+)?e-\d+))")
PROMPTS = ("a large red circle", "a small blue square")
SWITCHING = PromptTimeline.switching(PROMPTS, [6])
# What rounding once more or once less may add to the distance from float32.
BF16_SLACK = 1.5

cases = pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.stem)


class Plugin(NamedTuple):
    """A callback that an overlay names."""

    kind: type
    arguments: dict[str, Any]

    def make(self, **changes: Any) -> pl.Callback:
        callback: pl.Callback = self.kind(**{**self.arguments, **changes})
        return callback

    def takes(self, argument: str) -> bool:
        return argument in self.kind.__init__.__annotations__


def overlay_of(name: str) -> Path:
    return ROOT / "configs" / "opt" / f"{name}.yaml"


def plugins_of(overlay: Path) -> list[Plugin]:
    entries = yaml.safe_load(overlay.read_text()).get("trainer", {}).get("callbacks+", [])
    plugins = []
    for entry in entries:
        module, _, name = entry["class_path"].rpartition(".")
        plugins.append(Plugin(getattr(import_module(module), name), entry.get("init_args", {})))
    return plugins


def bound_of(overlay: Path) -> float | None:
    """The promised distance, 0 for none at all, or None where nothing is promised."""
    promise = NUMERICS.fullmatch(overlay.read_text().splitlines()[0])
    assert promise, f"the first line of {overlay.name} does not state its numerics"
    if promise[1] == "different":
        return None
    return float(promise[2]) if promise[2] else 0.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_nano_model(tmp_path_factory.mktemp("nano"))


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def model_of(folder: Path, device: str = "cpu", **settings: Any) -> LongLive:
    # float32 is what bounds are stated in; a GPU would choose bfloat16.
    given = {"weights": str(folder), "latent_frames": 15, "dtype": "float32", **SETTINGS}
    return LongLive(**{**given, **settings}).prepare(device)


def settings_of(overlay: Path) -> dict[str, Any]:
    settings: dict[str, Any] = (
        yaml.safe_load(overlay.read_text()).get("model", {}).get("init_args", {})
    )
    return settings


def run(model: LongLive, callbacks: Sequence[pl.Callback] = ()) -> list[Block]:
    return list(model.stream(SWITCHING, seed=1, callbacks=callbacks))


def distance(blocks: Sequence[Block], expected: Sequence[Block]) -> float:
    """The largest relative L2 distance of any block's latents or frames."""

    def between(got: Tensor, wanted: Tensor) -> float:
        got, wanted = got.double(), wanted.double()
        return float((got - wanted).norm() / wanted.norm())

    assert len(blocks) == len(expected)
    pairs = list(zip(blocks, expected, strict=True))
    latents = max(between(mine.latents, theirs.latents) for mine, theirs in pairs)
    return max(latents, *(between(mine.frames, theirs.frames) for mine, theirs in pairs))


def test_there_is_an_overlay_for_every_optimization():
    assert OVERLAYS
    named = {plugin.kind for overlay in OVERLAYS for plugin in plugins_of(overlay)}
    modules = [import_module(f"longlive.callbacks.{path.stem}") for path in CALLBACKS.glob("*.py")]
    base = import_module("longlive.callbacks.optimization").Optimization
    found = {
        kind
        for module in modules
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, base) and kind is not base
    }
    assert found - named == set()


@cases
def test_an_overlay_states_its_numerics_and_names_one_optimization(overlay):
    bound = bound_of(overlay)
    assert bound is None or 0 <= bound < 1
    assert len(plugins_of(overlay)) <= 1


@cases
def test_an_overlay_keeps_its_promise(overlay, folder):
    # The compiler's kernels are compared in the slow tests and on a GPU; here, what it traces.
    callbacks = [
        plugin.make(**({"backend": "aot_eager"} if plugin.takes("backend") else {}))
        for plugin in plugins_of(overlay)
    ]
    check_promise(overlay, folder, callbacks, "cpu")


@pytest.mark.slow
@cases
def test_an_overlay_with_compiled_kernels_keeps_its_promise(overlay, folder):
    plugins = plugins_of(overlay)
    if not any(plugin.takes("backend") for plugin in plugins):
        pytest.skip("nothing is compiled")
    if overlay.stem == "compile_decoder":
        pytest.skip("a minute of a C++ compiler; on a GPU its kernels are compared")
    check_promise(overlay, folder, [plugin.make() for plugin in plugins], "cpu")


def check_promise(
    overlay: Path, folder: Path, callbacks: Sequence[pl.Callback], device: str
) -> None:
    bound = bound_of(overlay)
    try:
        got = run(model_of(folder, device, **settings_of(overlay)), callbacks)
    except UserError as error:
        pytest.skip(str(error))
    # An overlay of the model's own settings is compared with what it was before.
    expected = run(model_of(folder, device))
    if bound is None:
        assert all(block.frames.isfinite().all() for block in got)
    elif bound == 0:
        for mine, theirs in zip(got, expected, strict=True):
            assert torch.equal(mine.latents, theirs.latents)
            assert torch.equal(mine.frames, theirs.frames)
    else:
        assert distance(got, expected) <= bound


@cases
def test_what_a_machine_lacks_is_one_line_or_if_asked_a_run_without_it(overlay, folder, caplog):
    plugins = plugins_of(overlay)
    waiting = [
        plugin.make(**({"rehearses": False} if plugin.takes("rehearses") else {}))
        for plugin in plugins
    ]
    message = ""
    try:
        model_of(folder, **settings_of(overlay)).stream(SWITCHING, callbacks=waiting)
    except UserError as error:
        message = str(error)
    if not message:
        pytest.skip("this machine has all it needs")
    assert re.fullmatch(r".*(needs|cannot be used).*", message)
    optional = [plugin.make(required=False) for plugin in plugins if plugin.takes("required")]
    if not optional:
        return
    for mine, theirs in zip(run(model_of(folder), optional), run(model_of(folder)), strict=True):
        assert torch.equal(mine.latents, theirs.latents)
        assert torch.equal(mine.frames, theirs.frames)
    assert len([line for line in caplog.messages if "is off: it needs" in line]) == 1


def test_no_optimization_imports_another_so_that_any_can_be_deleted():
    files = {path.stem for path in CALLBACKS.glob("*.py")}
    own = {plugin.kind.__module__ for overlay in OVERLAYS for plugin in plugins_of(overlay)}
    optimizations = {module.rpartition(".")[2] for module in own} & files
    for path in (ROOT / "longlive").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                imported = node.module.removeprefix("longlive.callbacks.")
                assert imported not in optimizations, f"{path} imports {node.module}"


def test_optimizations_together_keep_the_largest_of_their_promises(folder):
    names = (
        *("compile", "fuse_projections", "fuse_layers"),
        *("fold_upsampling", "fuse_decoder", "vae_pipeline", "prompt_cache"),
    )
    plugins = [plugin for overlay in map(overlay_of, names) for plugin in plugins_of(overlay)]
    together = [
        plugin.make(**({"backend": "eager"} if plugin.takes("backend") else {}))
        for plugin in plugins
    ]
    assert distance(run(model_of(folder), together), run(model_of(folder))) <= 1e-4


# On a GPU.


@pytest.fixture
def _plain_float32() -> Iterator[None]:
    """Convolutions on a GPU round float32 to 10 bits unless they are told not to."""
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = allowed


@pytest.mark.gpu
@pytest.mark.usefixtures("_plain_float32")
@cases
def test_an_overlay_keeps_its_promise_on_a_gpu(overlay, folder):
    check_promise(overlay, folder, [plugin.make() for plugin in plugins_of(overlay)], "cuda")


@pytest.mark.gpu
@pytest.mark.usefixtures("_plain_float32")
@cases
def test_in_bfloat16_an_overlay_is_no_further_from_float32_than_the_eager_path(overlay, folder):
    if bound_of(overlay) is None:
        pytest.skip("nothing is promised")
    callbacks = [plugin.make() for plugin in plugins_of(overlay)]
    exact = run(model_of(folder, "cuda"))
    eager = distance(run(model_of(folder, "cuda", dtype="bfloat16")), exact)
    try:
        got = run(model_of(folder, "cuda", dtype="bfloat16"), callbacks)
    except UserError as error:
        pytest.skip(str(error))
    assert distance(got, exact) <= BF16_SLACK * eager


FAST = (
    *("compile", "cuda_graph", "fuse_projections", "fuse_layers"),
    *("compile_decoder", "cuda_graph_decoder", "fold_upsampling"),
)


class Paced(RolloutCallback):
    """Keeps the host two blocks ahead of the device, as a writer does."""

    def __init__(self) -> None:
        self.events: deque[torch.cuda.Event] = deque()

    def on_frames_ready(self, trainer, pl_module, state, frames_BTCHW):
        self.events.append(torch.cuda.Event())
        self.events[-1].record()
        if len(self.events) > 2:
            self.events.popleft().synchronize()


@pytest.mark.gpu
@pytest.mark.parametrize(
    "beside",
    [(), ("vae_pipeline", "prompt_cache"), ("fp8",), ("fuse_decoder",)],
    ids=["serial", "beside", "fp8", "fused"],
)
def test_from_block_8_to_200_nothing_waits_grows_or_is_compiled(folder, beside):
    model = model_of(folder, "cuda", dtype="bfloat16", positions="relative")
    overlays = map(overlay_of, (*FAST, *beside))
    callbacks = [plugin.make() for overlay in overlays for plugin in plugins_of(overlay)]
    needs = (one.missing(torch.device("cuda")) for one in callbacks if hasattr(one, "missing"))
    if need := next(filter(None, needs), None):
        pytest.skip(f"needs {need}")
    # One switch before, which may still be the first of its kind, and one within.
    prompts = PromptTimeline.switching((*PROMPTS, PROMPTS[0]), [15, 300])
    stream = model.stream(prompts, latent_frames=None, callbacks=[*callbacks, Paced()])
    memory: dict[int, tuple[int, int]] = {}
    compiled: dict[int, int] = {}
    try:
        for block in islice(stream, 200):
            if block.index in (8, 90, 199):
                torch.cuda.set_sync_debug_mode("default")
                torch.cuda.synchronize()
                # Lets the allocator notice what other streams are done with.
                torch.empty(1, device="cuda")
                memory[block.index] = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
                compiled[block.index] = counters["stats"]["unique_graphs"]
                torch.cuda.set_sync_debug_mode("error")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert compiled[8] == compiled[90] == compiled[199] > 0
    assert memory[8] == memory[90] == memory[199]


@pytest.mark.gpu
def test_a_graph_of_the_eager_pass_gives_the_same_bits(folder):
    overlays = map(overlay_of, ("cuda_graph", "cuda_graph_decoder"))
    callbacks = [plugin.make() for overlay in overlays for plugin in plugins_of(overlay)]
    model = model_of(folder, "cuda", dtype="bfloat16", latent_frames=24)
    for _ in range(2):
        for mine, theirs in zip(run(model, callbacks), run(model), strict=True):
            assert torch.equal(mine.latents, theirs.latents)
            assert torch.equal(mine.frames, theirs.frames)
