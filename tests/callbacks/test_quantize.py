"""Linear layers that multiply in eight bits, and which of a transformer's they are."""

from collections.abc import Sequence
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from graph_tape import TapeRecorder
from nano_model import SETTINGS
from torch import Tensor, nn
from torch._dynamo.utils import counters

from longlive.callbacks.compile import CompileLayers
from longlive.callbacks.cuda_graph import CaptureDenoiser
from longlive.callbacks.quantize import QuantizeLinears
from longlive.callbacks.quantized_linear import QuantizedLinear, quantize
from longlive.cli import main
from longlive.errors import UserError
from longlive.models.dit import DiT
from longlive.models.sizes import DiTConfig
from longlive.modules.longlive import LongLive
from longlive.rollout.prompts import PromptTimeline
from longlive.rollout.stream import Block
from longlive.weights.lora import add_lora

ROOT = Path(__file__).parents[2]
SWITCHING = PromptTimeline.switching(("a large red circle", "a small blue square"), [6])
# e4m3 has 3 bits behind the first: half a step is 2**-4 of a value, or of the smallest normal one.
FP8_HALF_STEP, FP8_SMALLEST_HALF_STEP = 2.0**-4, 2.0**-10
# What results in bfloat16 may lack.
BF16_HALF_STEP = 2.0**-8
# Of a whole rollout of the model below, as measured, and half as much again.
FP8_DISTANCE, INT8_DISTANCE = 0.1, 0.03
SELF_UP = ["self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "ffn.0"]
ALL = [*SELF_UP, "ffn.2", "cross_attn.q", "cross_attn.o"]

kinds = pytest.mark.parametrize("kind", ["fp8", "int8"])
granularities = pytest.mark.parametrize("granularity", ["row", "tensor"])


def restored(x: Tensor, kind: str, granularity: str) -> Tensor:
    values, scale = quantize(x, kind, granularity)
    return values.double() * scale.double()


def half_steps(x: Tensor, kind: str, granularity: str) -> Tensor:
    """The farthest that each rounded value may be from what it was."""
    size = x.double().abs()
    peak = size.amax(-1, keepdim=True) if granularity == "row" else size.amax()
    if kind == "int8":
        return (peak / 127 / 2).expand_as(size)
    return torch.maximum(size * FP8_HALF_STEP, peak / 448 * FP8_SMALLEST_HALF_STEP)


def uneven(rows: int, columns: int) -> Tensor:
    """Rows that differ in size by four orders of magnitude."""
    return torch.randn(rows, columns) * torch.logspace(-2, 2, rows)[:, None]


def linear(inputs: int = 64, outputs: int = 32, bias: bool = True) -> nn.Linear:
    made = nn.Linear(inputs, outputs, bias=bias).requires_grad_(False)
    made.weight.copy_(uneven(outputs, inputs))
    return made


@kinds
@granularities
def test_rounding_moves_no_value_by_more_than_half_a_step(kind, granularity):
    x = uneven(24, 80)
    error = (restored(x, kind, granularity) - x.double()).abs()
    allowed = half_steps(x, kind, granularity) * (1 + 1e-5)
    assert (error <= allowed).all()
    # Some are nearly that far off: the values are no finer than they say.
    assert (error > 0.8 * allowed).any()


@kinds
def test_a_row_has_a_scale_of_its_own_and_the_largest_value_is_kept(kind):
    x = uneven(24, 80)
    values, scale = quantize(x, kind, "row")
    assert values.shape == x.shape
    assert scale.shape == (24, 1)
    assert scale.dtype == torch.float32
    peak = x.abs().amax(-1)
    torch.testing.assert_close(
        restored(x, kind, "row").abs().amax(-1), peak.double(), rtol=1e-6, atol=0
    )
    changed = x.clone()
    changed[0] *= 1000
    assert torch.equal(restored(changed, kind, "row")[1:], restored(x, kind, "row")[1:])
    assert quantize(x, kind, "tensor")[1].shape == ()


@kinds
@granularities
def test_zeros_stay_zeros(kind, granularity):
    assert (restored(torch.zeros(2, 16), kind, granularity) == 0).all()


@kinds
@granularities
@pytest.mark.parametrize("bias", [True, False])
def test_the_kernels_compute_the_products_of_the_rounded_values(kind, granularity, bias):
    plain, x = linear(bias=bias), uneven(40, 64)
    expected = restored(x, kind, granularity) @ restored(plain.weight, kind, granularity).t()
    expected = expected if plain.bias is None else expected + plain.bias.double()
    # The CPU has these kernels too, slowly.
    for emulates in (True, False):
        got = QuantizedLinear(plain, kind, granularity, emulates)(x)
        assert got.dtype == torch.float32
        is_bf16 = kind == "fp8" and not emulates
        bound = BF16_HALF_STEP if is_bf16 else 1e-5
        assert ((got - expected).norm(dim=1) <= bound * expected.norm(dim=1)).all()


@kinds
@granularities
def test_the_error_of_a_product_is_within_that_of_its_factors(kind, granularity):
    plain, x = linear(), uneven(40, 64)
    got = QuantizedLinear(plain, kind, granularity, emulates=True)(x)
    exact = x.double() @ plain.weight.double().t() + plain.bias.double()
    sizes = [part.double().abs() for part in (x, plain.weight)]
    steps = [half_steps(part, kind, granularity) for part in (x, plain.weight)]
    bound = (sizes[0] + steps[0]) @ (sizes[1] + steps[1]).t() - sizes[0] @ sizes[1].t()
    assert ((got - exact).abs() <= bound * (1 + 1e-4)).all()


@pytest.mark.parametrize(("kind", "error"), [("fp8", 0.06), ("int8", 0.02)])
def test_with_a_scale_for_each_token_quiet_ones_lose_no_more_than_loud_ones(kind, error):
    plain, x = nn.Linear(256, 64, bias=False).requires_grad_(False), uneven(40, 256)
    exact = x.double() @ plain.weight.double().t()

    def errors(granularity: str) -> Tensor:
        got = QuantizedLinear(plain, kind, granularity, emulates=True)(x)
        return (got - exact).norm(dim=1) / exact.norm(dim=1)

    assert errors("row").max() < error
    # The quietest is 10 000 times smaller than the loudest: less than a step of int8.
    assert errors("tensor")[0] > 0.5 or kind == "fp8"


def test_weights_are_rounded_from_float32_and_their_type_is_kept_for_results():
    plain = linear().bfloat16()
    made = QuantizedLinear(plain, "fp8")
    assert (made.weight.dtype, made.scale.dtype) == (torch.float8_e4m3fn, torch.float32)
    assert made.scale.shape == (1, 32)
    x = torch.randn(2, 3, 64, dtype=torch.bfloat16)
    for emulates in (True, False):
        out = QuantizedLinear(plain, "fp8", emulates=emulates)(x)
        assert (out.dtype, out.shape) == (torch.bfloat16, (2, 3, 32))
    # Columns first in memory, which the kernels do not take.
    turned = x.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(made(turned), made(x))


# In a transformer.


pytestmark = pytest.mark.usefixtures("nothing_compiled")


def model_of(folder: Path) -> LongLive:
    settings = {**SETTINGS, "latent_frames": 15, "dtype": "float32"}
    return LongLive(weights=str(folder), **settings).prepare("cpu")


def run(model: LongLive, *callbacks: pl.Callback) -> list[Block]:
    return list(model.stream(SWITCHING, seed=1, callbacks=callbacks))


def distance(blocks: Sequence[Block], expected: Sequence[Block]) -> float:
    got, wanted = (torch.cat([b.latents for b in each], 1).double() for each in (blocks, expected))
    return float((got - wanted).norm() / wanted.norm())


def quantized(dit: DiT) -> set[str]:
    return {name for name, module in dit.named_modules() if isinstance(module, QuantizedLinear)}


def test_by_default_everything_in_the_layers_is_replaced_but_keys_and_values_of_the_text(folder):
    model = model_of(folder)
    before = dict(model.dit.named_modules())
    text = model.encode(["a red circle"])
    keys = model.dit.text_keys_values(text)
    run(model, QuantizeLinears(emulates=True))
    wanted = {f"blocks.{index}.{name}" for index in (0, 1) for name in ALL}
    assert quantized(model.dit) == wanted
    after = dict(model.dit.named_modules())
    kept = {name for name, module in before.items() if isinstance(module, nn.Linear)} - wanted
    outside = {"text_embedding.0", "time_embedding.2", "time_projection.1", "head.head"}
    assert outside | {"blocks.0.cross_attn.k", "blocks.1.cross_attn.v"} <= kept
    assert all(after[name] is before[name] for name in kept)
    for layer, again in zip(keys, model.dit.text_keys_values(text), strict=True):
        assert all(map(torch.equal, layer, again))
    assert not any(weight.requires_grad for weight in model.dit.parameters())


@pytest.mark.parametrize(
    ("keeps", "replaced"),
    [
        (["*_attn.*"], {f"blocks.{index}.ffn.{place}" for index in (0, 1) for place in (0, 2)}),
        (["blocks.0.*", "*.cross_attn.*", "blocks.1.ffn.2"], {f"blocks.1.{n}" for n in SELF_UP}),
    ],
    ids=["pattern", "patterns and a name"],
)
def test_the_layers_that_are_named_stay_as_they_are(folder, keeps, replaced):
    model = model_of(folder)
    run(model, QuantizeLinears(keeps=keeps, emulates=True))
    assert quantized(model.dit) == replaced


def test_a_layer_whose_sides_the_kernels_cannot_take_stays_as_it_is():
    with torch.device("meta"):
        dit = DiT(DiTConfig(width=16, ffn_width=24, heads=2, layers=1, text_width=8, text_len=4))
    names = QuantizeLinears(keeps=[]).chosen(dit)
    assert not any("ffn" in name for name in names)
    assert "blocks.0.self_attn.q" in names
    with pytest.raises(UserError, match="nothing to quantize"):
        QuantizeLinears(keeps=["*_attn.*"]).chosen(dit)


@pytest.mark.parametrize(("kind", "bound"), [("fp8", FP8_DISTANCE), ("int8", INT8_DISTANCE)])
def test_a_quantized_rollout_is_near_the_plain_one_and_not_the_same(folder, kind, bound, caplog):
    caplog.set_level("INFO", "longlive")
    got = run(model_of(folder), QuantizeLinears(kind, emulates=True))
    assert bound / 100 < distance(got, run(model_of(folder))) <= bound
    label = f"16 linear layers multiply in {kind}, emulated: a test of quality, and no faster"
    assert caplog.messages.count(label) == 1


def test_int8_on_a_cpu_is_what_its_emulation_says(folder):
    real, emulated = QuantizeLinears("int8"), QuantizeLinears("int8", emulates=True)
    # A sum that is rounded otherwise may put a later value on the other side of a step.
    assert distance(run(model_of(folder), real), run(model_of(folder), emulated)) < 2e-3


def test_a_model_is_quantized_once_and_in_one_way(folder):
    model = model_of(folder)
    callback = QuantizeLinears(emulates=True)
    first = run(model, callback)
    weights = list(model.dit.parameters())
    assert distance(run(model, callback), first) == 0
    assert all(map(lambda a, b: a is b, weights, model.dit.parameters()))
    for changes in ({"kind": "int8"}, {"granularity": "tensor"}, {"keeps": ["*.ffn.0"]}):
        with pytest.raises(UserError, match="quantized in another way already"):
            run(model, QuantizeLinears(**{"emulates": True, **changes}))


@pytest.mark.parametrize("emulated", ["fp8", "int8"])
def test_compiled_layers_quantize_as_eager_ones_and_are_compiled_as_often(folder, emulated):
    eager = run(model_of(folder), QuantizeLinears(emulated, emulates=True))
    # Named in the wrong order; the weights are replaced first all the same.
    callbacks = CompileLayers(backend="eager"), QuantizeLinears(emulated, emulates=True)
    # Rotary positions are rounded otherwise, which may put a value on the other side of a step.
    assert distance(run(model_of(folder), *callbacks), eager) < 2e-3
    assert counters["stats"]["unique_graphs"] == 3


def test_a_capture_holds_the_quantized_weights_and_serves_the_next_rollout(folder):
    model, quantize_, capture = model_of(folder), QuantizeLinears("int8"), CaptureDenoiser()
    recorder = TapeRecorder()
    capture._recorder = lambda device: recorder
    capture.missing = lambda device: None
    eager = run(model_of(folder), QuantizeLinears("int8"))
    assert distance(run(model, capture, quantize_), eager) == 0
    count = recorder.count
    assert count > 0
    assert distance(run(model, capture, quantize_), eager) == 0
    assert recorder.count == count


# What cannot work.


@pytest.mark.parametrize(
    ("kind", "device", "capability", "works"),
    [
        ("fp8", "cuda", (8, 6), False),
        ("fp8", "cuda", (8, 9), True),
        ("fp8", "cuda", (9, 0), True),
        ("fp8", "cpu", None, False),
        ("int8", "cuda", (7, 0), False),
        ("int8", "cuda", (8, 0), True),
        ("int8", "cpu", None, True),
        ("int8", "mps", None, False),
    ],
)
def test_it_says_in_a_line_what_multiplies_such_numbers(
    kind, device, capability, works, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    need = QuantizeLinears(kind).missing(torch.device(device))
    assert (need is None) == works
    if need is not None:
        assert kind in need
        assert "compute capability" in need
        assert "emulates" in need
    assert QuantizeLinears(kind, emulates=True).missing(torch.device(device)) is None


def test_without_fp8_the_run_ends_with_the_reason_or_goes_on_if_asked(folder, caplog):
    with pytest.raises(UserError, match=r"QuantizeLinears needs a GPU .*8\.9") as refused:
        run(model_of(folder), QuantizeLinears())
    assert "\n" not in str(refused.value)
    model = model_of(folder)
    assert distance(run(model, QuantizeLinears(required=False)), run(model_of(folder))) == 0
    assert not quantized(model.dit)
    assert "QuantizeLinears is off: it needs" in caplog.text


def test_a_pattern_that_names_no_layer_is_an_error(folder):
    with pytest.raises(UserError, match=r"keeps has 'fnn', which names no linear layer"):
        run(model_of(folder), QuantizeLinears(keeps=["fnn"], emulates=True))


def test_adapters_beside_the_weights_are_refused(folder):
    model = model_of(folder)
    add_lora(model.dit, rank=2, alpha=2)
    model.dit.requires_grad_(False)
    with pytest.raises(UserError, match="set lora to merged"):
        run(model, QuantizeLinears(emulates=True))


def test_weights_that_are_being_trained_are_refused(folder):
    model = model_of(folder)
    model.dit.requires_grad_(True)
    with pytest.raises(UserError, match="cannot be trained"):
        run(model, QuantizeLinears(emulates=True))
    assert not quantized(model.dit)


@pytest.mark.parametrize(
    ("option", "said"),
    [("kind=fp4", "fp8 or int8"), ("granularity=block", "row or tensor"), ("keeep=[]", "keeps")],
)
def test_a_wrong_argument_is_one_line_with_what_is_allowed(option, said, capsys):
    name = "longlive.callbacks.quantize.QuantizeLinears"
    command = ["predict", f"--config={ROOT / 'configs' / 'tiny.yaml'}"]
    command += [f"--trainer.callbacks+={name}", f"--trainer.callbacks.{option}", "--print_config"]
    assert main(command) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert said in lines[0]


# On a GPU.


@pytest.mark.gpu
@kinds
@granularities
@pytest.mark.parametrize(("inputs", "outputs"), [(1536, 8960), (8960, 1536), (1536, 1536)])
@torch.no_grad()
def test_the_kernels_of_a_gpu_compute_the_products_of_the_rounded_values(
    kind, granularity, inputs, outputs
):
    if need := QuantizeLinears(kind).missing(torch.device("cuda")):
        pytest.skip(need)
    plain = nn.Linear(inputs, outputs, device="cuda", dtype=torch.bfloat16)
    x = torch.randn(1, 4680, inputs, device="cuda", dtype=torch.bfloat16)
    real, emulated = (QuantizedLinear(plain, kind, granularity, how) for how in (False, True))
    expected = emulated(x.float())
    got = real(x)
    assert got.dtype == torch.bfloat16
    # Rounding to bfloat16, and sums of 14 bits.
    assert (got - expected).norm() <= 4e-3 * expected.norm()
    compiled = torch.compile(real)(x)
    # A division that is rounded otherwise may move a value by a step.
    assert (compiled.float() - expected).norm() <= 1e-2 * expected.norm()


@pytest.mark.gpu
@kinds
def test_compiled_captured_and_quantized_passes_are_those_of_the_eager_ones(folder, kind):
    if need := QuantizeLinears(kind).missing(torch.device("cuda")):
        pytest.skip(need)
    settings = {**SETTINGS, "latent_frames": 24, "dtype": "bfloat16"}
    models = [LongLive(weights=str(folder), **settings).prepare("cuda") for _ in range(2)]
    compiled = run(models[0], QuantizeLinears(kind), CompileLayers())
    captured = run(models[1], QuantizeLinears(kind), CompileLayers(), CaptureDenoiser())
    assert distance(captured, compiled) == 0
