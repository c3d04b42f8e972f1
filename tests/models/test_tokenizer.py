"""Cleaning, special tokens, lengths and warnings of the tokenizer."""

import logging
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from longlive.errors import UserError
from longlive.models.text_encoder import TEXT_ENCODER_SIZES
from longlive.models.tokenizer import PromptTokenizer, build_word_tokenizer, clean_prompt

WORDS = ["a", "small", "large", "red", "blue", "circle", "star", "moves", "left"]


def words(text_len: int = 8) -> PromptTokenizer:
    return PromptTokenizer(build_word_tokenizer(WORDS), text_len)


def sentencepiece_like() -> Tokenizer:
    """A tokenizer laid out as google/umt5-xxl's: Unigram with Metaspace and an end template."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(piece, -3.0) for piece in ("▁a", "▁cat", "▁on", "▁the", "▁mat", "s")]
    pieces += [(letter, -9.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return tokenizer


def folder_of(tokenizer: Tokenizer, path: Path) -> Path:
    tokenizer.save(str(path / "tokenizer.json"))
    return path


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("  a\tred\n\n circle ", "a red circle"),
        ("a\u00a0red\u2003circle\u3000", "a red circle"),
        ("cats &amp;amp; dogs", "cats & dogs"),
        ("&amp;amp;amp;", "&"),  # ftfy resolves one level, then twice by us
        ("the cafÃ©", "the café"),
        ("\ufeff a\u200b", "a\u200b"),
        ("&nbsp; a", "a"),
        ("ｆｕｌｌ width", "full width"),
    ],
)
def test_prompts_are_cleaned(raw, clean):
    assert clean_prompt(raw) == clean


def test_a_prompt_is_ids_then_end_of_sequence_then_padding():
    batch = words()(["a red circle", "Large, RED star!"])
    assert batch.ids.tolist() == [[3, 6, 8, 1, 0, 0, 0, 0], [5, 6, 9, 1, 0, 0, 0, 0]]
    assert batch.mask.tolist() == [[1, 1, 1, 1, 0, 0, 0, 0]] * 2
    assert batch.ids.dtype is batch.mask.dtype is torch.int64


def test_a_folder_with_a_unigram_model_gives_the_librarys_ids(tmp_path):
    tokenizer = sentencepiece_like()
    expected = tokenizer.encode("a cat on the mats").ids
    assert expected[-1] == 1
    batch = PromptTokenizer.from_folder(folder_of(tokenizer, tmp_path), 12)(["a cat on the mats"])
    assert batch.ids[0, : len(expected)].tolist() == expected
    assert batch.ids[0, len(expected) :].eq(0).all()
    assert batch.mask.sum() == len(expected)


def test_cutting_and_padding_stored_in_the_file_are_not_applied(tmp_path):
    tokenizer = sentencepiece_like()
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=6)
    batch = PromptTokenizer.from_folder(folder_of(tokenizer, tmp_path), 12)(["a cat on the mat"])
    assert batch.mask.sum() == 6


def test_a_prompt_that_just_fits_is_left_alone(caplog):
    batch = words(text_len=4)(["a red circle"])
    assert batch.ids.tolist() == [[3, 6, 8, 1]]
    assert not caplog.records


def test_a_prompt_that_is_too_long_is_cut_with_one_warning_and_still_ends(caplog):
    with caplog.at_level(logging.WARNING):
        batch = words(text_len=4)(["a small red circle moves left", "a star"])
    assert batch.ids.tolist() == [[3, 4, 6, 1], [3, 9, 1, 0]]
    (record,) = caplog.records
    assert "6 tokens" in record.message
    assert "the last 3 were dropped" in record.message


@pytest.mark.parametrize("empty", ["", "  \n\t", "\u00a0", "&nbsp;"])
def test_an_empty_prompt_is_refused_unless_it_is_wanted(empty):
    with pytest.raises(UserError, match="prompt is empty"):
        words()(["a star", empty])
    batch = words()([empty], allow_empty=True)
    assert batch.ids.tolist() == [[1, 0, 0, 0, 0, 0, 0, 0]]
    assert batch.mask.sum() == 1


def test_unknown_words_are_named_once_beside_known_ones(caplog):
    with caplog.at_level(logging.WARNING):
        batch = words()(["a Purple elephant, purple star"])
    assert batch.ids[0, :6].tolist() == [3, 2, 2, 2, 9, 1]
    (record,) = caplog.records
    assert "know purple, elephant and" in record.message
    assert "a, small, large, red" in record.message


def test_unknown_signs_of_a_large_vocabulary_are_named_without_a_sample(caplog, tmp_path):
    tokenizer = PromptTokenizer.from_folder(folder_of(sentencepiece_like(), tmp_path), 12)
    with caplog.at_level(logging.WARNING):
        tokenizer(["a cat 猫"])
    (record,) = caplog.records
    assert "猫" in record.message
    assert "words such as" not in record.message


def test_a_saved_word_tokenizer_reads_back_the_same(tmp_path):
    prompt = ["a small, blue star"]
    again = PromptTokenizer.from_folder(folder_of(build_word_tokenizer(WORDS), tmp_path), 8)
    assert again(prompt).ids.tolist() == words()(prompt).ids.tolist()
    assert again.vocab_size == len(WORDS) + 3 <= TEXT_ENCODER_SIZES["tiny"].vocab
    assert again.known_words() == WORDS


def test_repeated_words_count_once_and_non_words_are_refused():
    assert build_word_tokenizer(["Red", "red", "star"]).token_to_id("star") == 4
    with pytest.raises(UserError, match="single word"):
        build_word_tokenizer(["light blue"])
    with pytest.raises(UserError, match="at least one"):
        build_word_tokenizer([])


def test_a_missing_or_damaged_file_is_one_line_that_names_it(tmp_path):
    with pytest.raises(UserError, match="longlive download longlive-1.3b"):
        PromptTokenizer.from_folder(tmp_path, 8)
    file = tmp_path / "tokenizer.json"
    file.write_text('{"version": "1.0", "trunc')
    with pytest.raises(UserError, match=r"tokenizer\.json is not a readable tokenizer") as error:
        PromptTokenizer.from_folder(tmp_path, 8)
    assert "\n" not in str(error.value)


def test_a_tokenizer_with_other_special_ids_is_refused(tmp_path):
    other = Tokenizer(models.WordLevel({"</s>": 0, "<pad>": 1, "a": 2}, unk_token="a"))
    with pytest.raises(UserError, match="<pad> must be id 0"):
        PromptTokenizer.from_folder(folder_of(other, tmp_path), 8)
    with pytest.raises(UserError, match="text_len"):
        words(text_len=1)


def test_a_single_string_is_not_taken_for_a_list():
    with pytest.raises(TypeError, match="list"):
        words()("a star")
