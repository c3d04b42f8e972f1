"""Prompts to token ids: cleaning, end of sequence, and padding to the length the model was given.

Shape suffixes: B batch, M tokens of the prompt.
"""

import html
import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import ftfy
import torch
from tokenizers import Encoding, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor

from longlive.errors import UserError

log = logging.getLogger(__name__)

PAD_ID = 0
EOS_ID = 1
PAD_TOKEN = "<pad>"
EOS_TOKEN = "</s>"
UNKNOWN_TOKEN = "<unk>"
SAMPLE_WORDS = 12


class TokenBatch(NamedTuple):
    """Tokenized prompts, ready for the text encoder.

    Attributes:
        ids: ``[B, M]`` int64, padded with 0.
        mask: ``[B, M]`` int64, one for tokens (end of sequence included), zero for padding.
    """

    ids: Tensor
    mask: Tensor


def clean_prompt(text: str) -> str:
    """Repair broken encodings, resolve HTML entities, and reduce white space to single spaces."""
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", text).strip()


class PromptTokenizer:
    """Turns prompts into ids and a mask of one fixed length.

    Args:
        tokenizer: Where the ids come from; pad must be id 0 and end of sequence id 1.
        text_len: Tokens in a row, end of sequence included.

    Raises:
        UserError: If the tokenizer numbers its special tokens differently, or ``text_len`` leaves
            no room for a word.
    """

    def __init__(self, tokenizer: Tokenizer, text_len: int) -> None:
        special = {token: tokenizer.token_to_id(token) for token in (PAD_TOKEN, EOS_TOKEN)}
        if special != {PAD_TOKEN: PAD_ID, EOS_TOKEN: EOS_ID}:
            raise UserError(
                f"this tokenizer does not fit the text encoder: {PAD_TOKEN} must be id {PAD_ID} "
                f"and {EOS_TOKEN} id {EOS_ID}, it has {special}; use the one of google/umt5-xxl"
            )
        if text_len < 2:
            raise UserError(f"text_len must be at least 2, got {text_len}")
        # A stored tokenizer may cut and pad on its own, which would hide what was dropped.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.tokenizer = tokenizer
        self.text_len = text_len

    @classmethod
    def from_folder(cls, path: str | Path, text_len: int) -> "PromptTokenizer":
        """Read ``tokenizer.json`` of a folder such as ``google/umt5-xxl``.

        Raises:
            UserError: If the file is missing or cannot be read.
        """
        file = Path(path) / "tokenizer.json"
        if not file.is_file():
            raise UserError(
                f"no tokenizer at {file}; run `longlive download longlive-1.3b`, or name the "
                "folder that holds tokenizer.json"
            )
        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # The library raises plain Exception, whatever is wrong.
            reason = " ".join(str(error).split())
            raise UserError(
                f"{file} is not a readable tokenizer ({reason}); delete it and download it again"
            ) from error
        return cls(tokenizer, text_len)

    @property
    def vocab_size(self) -> int:
        """Ids there can be; the text encoder's token table needs at least as many rows."""
        return self.tokenizer.get_vocab_size(with_added_tokens=True)

    def __call__(self, prompts: list[str], allow_empty: bool = False) -> TokenBatch:
        """Tokenize prompts; ones that are too long are cut, with a warning.

        Args:
            prompts: One text per row.
            allow_empty: Accept prompts without a word, as negative prompts may be.

        Raises:
            UserError: If a prompt is empty, or nothing but white space.
            TypeError: If given one string instead of a list.
        """
        if isinstance(prompts, str):
            raise TypeError("expected a list of prompts, got a single string")
        shape = (len(prompts), self.text_len)
        batch = TokenBatch(
            torch.full(shape, PAD_ID, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
        )
        for row, prompt in enumerate(prompts):
            tokens = self._encode(prompt, allow_empty)
            batch.ids[row, : len(tokens)] = torch.tensor(tokens)
            batch.mask[row, : len(tokens)] = 1
        return batch

    def _encode(self, prompt: str, allow_empty: bool) -> list[int]:
        text = clean_prompt(prompt)
        if not text and not allow_empty:
            raise UserError("a prompt is empty; describe what the video should show")
        # One text at a time: a batch would start threads, which do not survive a fork.
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        self._warn_about_unknown(text, encoding)
        tokens = encoding.ids
        room = self.text_len - 1
        if len(tokens) > room:
            log.warning(
                "a prompt has %d tokens and the model reads %d: the last %d were dropped (%s...)",
                len(tokens),
                room,
                len(tokens) - room,
                text[:40],
            )
        return [*tokens[:room], EOS_ID]

    def _warn_about_unknown(self, text: str, encoding: Encoding) -> None:
        unknown_id = self.tokenizer.token_to_id(UNKNOWN_TOKEN)
        spans = zip(encoding.ids, encoding.offsets, strict=True)
        unknown = dict.fromkeys(
            text[start:end].lower() for id_, (start, end) in spans if id_ == unknown_id
        )
        if not unknown:
            return
        known = ""
        # Only a vocabulary of words has entries worth reading.
        if isinstance(self.tokenizer.model, models.WordLevel):
            known = f"; it knows words such as {', '.join(self.known_words()[:SAMPLE_WORDS])}"
        log.warning(
            "the model does not know %s and will ignore what it means%s", ", ".join(unknown), known
        )

    def known_words(self) -> list[str]:
        """Return the vocabulary in the order of its ids, without the special tokens."""
        vocabulary = self.tokenizer.get_vocab(with_added_tokens=False)
        special = {PAD_TOKEN, EOS_TOKEN, UNKNOWN_TOKEN}
        return sorted(vocabulary.keys() - special, key=vocabulary.__getitem__)


def build_word_tokenizer(words: Iterable[str]) -> Tokenizer:
    """Make the tokenizer of a model that knows a short list of words.

    Case and punctuation do not matter; every other word becomes the unknown token.

    Args:
        words: The vocabulary. Ids follow its order, from 3 on; repeated words count once.

    Returns:
        A tokenizer for ``PromptTokenizer``; its ``save`` writes a ``tokenizer.json``.

    Raises:
        UserError: If there is no word, or an entry is not a single word.
    """
    vocabulary = list(dict.fromkeys(word.lower() for word in words))
    if not vocabulary:
        raise UserError("a word tokenizer needs at least one word")
    for word in vocabulary:
        if not re.fullmatch(r"\w+", word):
            raise UserError(f"{word!r} is not a single word; list words without spaces or signs")

    special = [PAD_TOKEN, EOS_TOKEN, UNKNOWN_TOKEN]
    ids = {token: index for index, token in enumerate([*special, *vocabulary])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN_TOKEN))
    tokenizer.add_special_tokens(special)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace(Regex(r"[^\w\s]+"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {EOS_TOKEN}", special_tokens=[(EOS_TOKEN, EOS_ID)]
    )
    return tokenizer


def build_byte_tokenizer() -> Tokenizer:
    """Make a tokenizer that needs no file: one token for each byte.

    It stands in for the real one where the weights are synthetic and no word means anything.
    """
    special = [PAD_TOKEN, EOS_TOKEN, UNKNOWN_TOKEN]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = {token: index for index, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(ids, [], unk_token=UNKNOWN_TOKEN))
    tokenizer.add_special_tokens(special)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer
