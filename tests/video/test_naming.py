"""Names of output files."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longlive.video.naming import output_name


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A large red circle", "0003-a-large-red-circle-s7"),
        ("  Ein Café: l'été, 2 Uhr! ", "0003-ein-cafe-lete-2-uhr-s7"),
        ("../../etc/passwd\n", "0003-etc-passwd-s7"),
        ("日本", "0003-s7"),
        ("x" * 90, f"0003-{'x' * 60}-s7"),
        ("word " * 30, f"0003-{'-'.join(['word'] * 12)}-s7"),
    ],
)
def test_a_name_has_index_words_and_seed(prompt, name):
    assert output_name(3, prompt, 7) == name


@given(st.text(max_size=200), st.integers(0, 99999), st.integers(0, 2**63))
def test_every_prompt_gives_a_safe_and_short_name(prompt, index, seed):
    name = output_name(index, prompt, seed)
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert len(name) <= 5 + 2 + 60 + 1 + 1 + 19
    assert name.startswith(f"{index:04d}-")
    assert name.endswith(f"-s{seed}")
    assert "--" not in name
