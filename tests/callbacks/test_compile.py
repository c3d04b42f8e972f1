"""How often the compiler is called, and what the rest of a run notices of it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from nano_model import SETTINGS
from torch._dynamo.utils import counters

from longlive.callbacks.compile import CompileLayers
from longlive.callbacks.compile_decoder import CompileDecoder
from longlive.callbacks.compile_text_encoder import CompileTextEncoder
from longlive.callbacks.optimization import compiler_missing
from longlive.errors import UserError
from longlive.modules.longlive import LongLive
from longlive.rollout.prompts import PromptTimeline

CIRCLE, SQUARE = "a large red circle", "a small blue square"
SWITCHING = PromptTimeline.switching([CIRCLE, SQUARE, CIRCLE], [3, 15])


pytestmark = pytest.mark.usefixtures("nothing_compiled")


def model_of(folder: Path, **changes: Any) -> LongLive:
    settings = {"weights": str(folder), "latent_frames": 24, **SETTINGS, **changes}
    return LongLive(**settings).prepare("cpu")


def compilations() -> int:
    return counters["stats"]["unique_graphs"]


@pytest.mark.parametrize(
    "changes",
    [{}, {"positions": "relative"}, {"window_latent_frames": 9}, {"guidance": 2.0}],
    ids=str,
)
def test_all_layers_and_kinds_of_passes_take_three_compilations_before_the_first_block(
    folder, changes
):
    model = model_of(folder, **changes)
    expected = list(model.stream(SWITCHING))
    stream = model.stream(SWITCHING, callbacks=[CompileLayers(backend="eager")])
    assert compilations() == 3
    with torch._dynamo.config.patch(error_on_recompile=True):
        for block, eager in zip(stream, expected, strict=True):
            torch.testing.assert_close(block.latents, eager.latents)
    assert compilations() == 3


def test_the_next_rollout_compiles_nothing_and_rehearses_nothing(folder):
    model, callback = model_of(folder), CompileLayers(backend="eager")
    list(model.stream(SWITCHING, callbacks=[callback]))
    with torch._dynamo.config.patch(error_on_recompile=True):
        again = model.stream(SQUARE, seed=1, callbacks=[callback])
        assert not again.state.spec.rehearses
        list(again)
    assert compilations() == 3


def test_without_a_rehearsal_the_steady_state_compiles_nothing_either(folder):
    model = model_of(folder, window_latent_frames=9)
    stream = model.stream(SWITCHING, callbacks=[CompileLayers(backend="eager", rehearses=False)])
    assert compilations() == 0
    blocks = iter(stream)
    for _ in range(6):
        next(blocks)
    assert compilations() == 3
    with torch._dynamo.config.patch(error_on_recompile=True):
        list(blocks)


def test_what_a_rehearsal_leaves_behind_is_not_seen(folder):
    model = model_of(folder)
    stream = model.stream(CIRCLE, callbacks=[CompileLayers(backend="eager")])
    assert stream.state.cache.k.count_nonzero() == 0
    assert stream.state.window.end == 0
    assert not stream.state.recent


def test_the_layers_are_compiled_whole(folder):
    model = model_of(folder)
    list(model.stream(CIRCLE, callbacks=[CompileLayers(backend="eager")]))
    assert not counters["graph_break"]


def test_the_decoder_takes_one_compilation_for_a_first_block_and_one_for_the_others(folder):
    model = model_of(folder)
    expected = list(model.stream(CIRCLE))
    stream = model.stream(CIRCLE, callbacks=[CompileDecoder(backend="eager")])
    assert compilations() == 2
    with torch._dynamo.config.patch(error_on_recompile=True):
        for block, eager in zip(stream, expected, strict=True):
            # Another library convolves on a CPU where nothing is compiled.
            torch.testing.assert_close(block.frames, eager.frames, rtol=0, atol=2e-4)
    assert compilations() == 2
    assert not counters["graph_break"]


def test_prompts_of_every_length_share_one_compilation_of_all_text_layers(folder):
    model = model_of(folder)
    encode = CompileTextEncoder(backend="eager").configure_text_encoder(
        None, model, lambda prompt: model.encode([prompt])
    )
    prompts = (CIRCLE, "a circle", SQUARE, "a small red circle bounces over")
    plain = [model_of(folder).encode([prompt]) for prompt in prompts]
    with torch.no_grad():
        for prompt, expected in zip(prompts, plain, strict=True):
            torch.testing.assert_close(encode(prompt), expected)
    assert compilations() == 1


@pytest.mark.parametrize("callback", [CompileLayers, CompileDecoder, CompileTextEncoder])
def test_a_machine_without_a_compiler_is_told_so_in_one_line(folder, callback, monkeypatch, caplog):
    def none() -> str:
        from torch._inductor.exc import InvalidCxxCompiler

        raise InvalidCxxCompiler

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", none)
    model = model_of(folder)
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler.*leave its overlay out") as error:
        model.stream(CIRCLE, callbacks=[callback()])
    assert "\n" not in str(error.value)
    list(model.stream(CIRCLE, callbacks=[callback(required=False)]))
    assert compilations() == 0
    assert len([line for line in caplog.messages if "is off: it needs" in line]) == 1


def test_other_backends_than_torchs_own_need_no_compiler(monkeypatch):
    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", None)
    assert compiler_missing(torch.device("cpu"), "eager") is None


@pytest.mark.slow
def test_a_second_start_finds_the_kernels_of_the_first(folder, tmp_path, monkeypatch):
    if compiler_missing(torch.device("cpu"), "inductor"):
        pytest.skip("needs a C++ compiler")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    for kernels_found in (0, 1):
        torch._dynamo.reset()
        # A first block is one compilation; all kinds of passes would be three.
        next(iter(model_of(folder).stream(CIRCLE, callbacks=[CompileLayers(rehearses=False)])))
        assert counters["inductor"]["fxgraph_cache_hit"] == kernels_found
