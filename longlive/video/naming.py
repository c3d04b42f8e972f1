"""Names of output files."""

import re
import unicodedata

_SLUG_CHARACTERS = 60


def slug(text: str, max_characters: int = _SLUG_CHARACTERS) -> str:
    """Reduce ``text`` to lower-case letters, digits and single hyphens, cut between words.

    Accents are dropped; characters that have no plain form are left out, so the result can be
    empty.
    """
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    words = re.findall(r"[a-z0-9]+", plain.replace("'", ""))
    result = ""
    for word in words:
        longer = f"{result}-{word}" if result else word
        if len(longer) > max_characters:
            return result or word[:max_characters]
        result = longer
    return result


def output_name(index: int, prompt: str, seed: int) -> str:
    """Name a video's files, without suffix: ``0003-a-large-red-circle-s7``.

    Args:
        index: Place in the list of prompts.
        prompt: The video's first prompt; at most 60 characters of it are used.
        seed: The video's seed.
    """
    return "-".join(part for part in (f"{index:04d}", slug(prompt), f"s{seed}") if part)
