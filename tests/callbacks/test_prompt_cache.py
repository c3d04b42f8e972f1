"""Prompts that are encoded once, and as soon as they are asked for."""

import threading

import pytest
import torch
from nano_model import SETTINGS

from longlive.callbacks.prompt_cache import PromptCache
from longlive.errors import UserError
from longlive.modules.longlive import LongLive
from longlive.rollout.hooks import RolloutCallback

CIRCLE, SQUARE, SPIN = "a large red circle", "a small blue square", "a circle spins"


@pytest.fixture
def model(folder) -> LongLive:
    settings = {"weights": str(folder), "latent_frames": 9, **SETTINGS}
    return LongLive(**settings).prepare("cpu")


@pytest.fixture
def encoded(model, monkeypatch) -> list[str]:
    """The prompts that reach the text encoder."""
    prompts: list[str] = []
    encode = model.encode

    def noted(asked: list[str]) -> torch.Tensor:
        prompts.extend(asked)
        return encode(asked)

    monkeypatch.setattr(model, "encode", noted)
    return prompts


def run(model: LongLive, prompt: str, cache: PromptCache) -> torch.Tensor:
    return torch.cat([block.latents for block in model.stream(prompt, callbacks=[cache])], 1)


def test_a_prompt_is_encoded_once_for_all_rollouts_of_a_model(model, encoded):
    cache = PromptCache()
    first, other, again = (run(model, prompt, cache) for prompt in (CIRCLE, SQUARE, CIRCLE))
    assert encoded == [CIRCLE, SQUARE]
    assert cache.hits == 1
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_prompt_used_longest_ago_is_forgotten_first(model, encoded):
    cache = PromptCache(prompts=2)
    for prompt in (CIRCLE, SQUARE, CIRCLE, SPIN, CIRCLE, SQUARE):
        run(model, prompt, cache)
    assert encoded == [CIRCLE, SQUARE, SPIN, SQUARE]


class Diary(RolloutCallback):
    """Notes how many prompts were encoded when a block began."""

    def __init__(self, encoded: list[str]) -> None:
        self.encoded = encoded
        self.at_block: list[int] = []

    def on_block_start(self, trainer, pl_module, state):
        self.at_block.append(len(self.encoded))


@pytest.mark.parametrize("ahead", [True, False])
def test_a_prompt_is_encoded_when_it_is_asked_for_in_whichever_thread(model, encoded, ahead):
    cache = PromptCache(ahead=ahead)
    stream = model.stream(CIRCLE, callbacks=[cache])
    blocks = iter(stream)
    next(blocks)
    typist = threading.Thread(target=stream.change_prompt, args=(SQUARE,))
    typist.start()
    typist.join()
    assert encoded == [CIRCLE, SQUARE] if ahead else [CIRCLE]
    switched = next(blocks).latents
    assert encoded == [CIRCLE, SQUARE]
    assert cache.hits == ahead
    # The same without the cache.
    plain = model.stream(CIRCLE)
    expected = iter(plain)
    next(expected)
    plain.change_prompt(SQUARE)
    assert torch.equal(next(expected).latents, switched)


def test_another_model_gets_embeddings_of_its_own(model, encoded, folder):
    cache = PromptCache()
    run(model, CIRCLE, cache)
    settings = {"weights": str(folder), "latent_frames": 3, **SETTINGS}
    run(LongLive(**settings).prepare("cpu"), CIRCLE, cache)
    assert cache.hits == 0


def test_the_negative_prompt_is_kept_too(folder):
    settings = {"weights": str(folder), "latent_frames": 3, "guidance": 2.0, **SETTINGS}
    model, cache = LongLive(**settings).prepare("cpu"), PromptCache()
    run(model, CIRCLE, cache)
    run(model, SQUARE, cache)
    assert cache.hits == 1


def test_a_cache_of_nothing_is_refused():
    with pytest.raises(UserError, match="keeps nothing: leave its overlay out"):
        PromptCache(prompts=0)


@pytest.mark.gpu
def test_embeddings_made_in_a_stream_of_their_own_are_whole_when_they_are_used(folder):
    settings = {"weights": str(folder), "latent_frames": 9, **SETTINGS}
    model = LongLive(**settings).prepare("cuda")
    encode = model.encode

    def slowly(prompts: list[str]) -> torch.Tensor:
        torch.cuda._sleep(50_000_000)
        return encode(prompts)

    expected = {prompt: encode([prompt]) for prompt in (CIRCLE, SQUARE, SPIN)}
    cache = PromptCache()
    get = cache.configure_text_encoder(None, model, lambda prompt: slowly([prompt]))
    for prompt, text in expected.items():
        cache.on_prompt_request(None, model, None, prompt)
        assert torch.equal(get(prompt), text)
