"""Whether a second run of a study, of other seeds or prompts, says what the first one said.

    python tools/compare_studies.py results/tradeoff results/tradeoff_seed_1 > agreement.md

For each number: how alike the two rank the variants that both have judged (Spearman's rank
correlation, which has nothing to go by where variants are equal but for chance); and of the
differences from the reference that are none of chance in the first run, because their interval
excludes zero, how many have the same sign in the second, and how many are none of chance there as
well. A variant counts if both have judged at least half as many videos of it as of their best one.
The first variant is the reference. A number that another one repeats in every variant of both runs
is left out.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torchmetrics.functional import spearman_corrcoef

from longlive.errors import UserError
from longlive.evaluation.bootstrap import Estimate
from longlive.evaluation.table import Row, Study, Table, build_table
from longlive.evaluation.text_table import NOTHING, grid

FEWEST = 3
"""Variants that can be ranked at all."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """What two runs say of one number.

    Attributes:
        name: The number's.
        variants: That both have.
        ranks: Rank correlation over them; None if there is nothing to rank.
        clear: Differences from the reference whose interval excludes zero in the first run.
        same_sign: Of these, those with the same sign in the second.
        clear_again: Of these, those whose interval excludes zero there, too.
    """

    name: str
    variants: int
    ranks: float | None
    clear: int
    same_sign: int
    clear_again: int

    @property
    def counts(self) -> tuple[int, int, int]:
        """The three counts, each of the ones before it."""
        return self.clear, self.same_sign, self.clear_again


def compare(first: Table, second: Table) -> list[Agreement]:
    """Compare the numbers that both have.

    Args:
        first: Of the run whose clear differences are looked up in the other.
        second: Of the same variants.
    """
    theirs = {row.name: row for row in _judged(second)}
    pairs = [(row, theirs[row.name]) for row in _judged(first) if row.name in theirs]
    agreements, seen = [], set()
    for name in first.numbers:
        values = tuple(_rounded(row.values.get(name)) for pair in pairs for row in pair)
        if name not in second.numbers or values in seen:
            continue
        seen.add(values)
        agreements.append(_agreement(name, pairs))
    return agreements


def _rounded(estimate: Estimate | None) -> str:
    """What tells two numbers apart that are not the same but for rounding."""
    return NOTHING if estimate is None else f"{estimate.value:.5g}"


def _judged(table: Table) -> list[Row]:
    most = max(row.videos for row in table.rows)
    return [row for row in table.rows if 2 * row.videos >= most > 0]


def _agreement(name: str, pairs: Sequence[tuple[Row, Row]]) -> Agreement:
    both = [
        (a.values[name], b.values[name]) for a, b in pairs if name in a.values and name in b.values
    ]
    clear = [
        (a.differences[name], b.differences[name])
        for a, b in pairs
        if name in a.differences and name in b.differences and _is_clear(a.differences[name])
    ]
    same = [(a, b) for a, b in clear if a.value * b.value > 0]
    return Agreement(
        name,
        len(both),
        _rank_correlation([(a.value, b.value) for a, b in both]),
        len(clear),
        len(same),
        sum(_is_clear(b) for _, b in same),
    )


def _is_clear(difference: Estimate) -> bool:
    return difference.low > 0 or difference.high < 0


def _rank_correlation(pairs: Sequence[tuple[float, float]]) -> float | None:
    if len(pairs) < FEWEST or any(len(set(values)) == 1 for values in zip(*pairs, strict=True)):
        return None
    mine, theirs = (
        torch.tensor(values, dtype=torch.float64) for values in zip(*pairs, strict=True)
    )
    return float(spearman_corrcoef(mine, theirs))


def lines_of(agreements: Sequence[Agreement]) -> list[str]:
    """A table in Markdown."""
    heads = [
        "number",
        "variants",
        "rank correlation",
        "clear differences",
        "same sign",
        "clear again",
    ]
    rows = [
        [
            *(one.name, str(one.variants)),
            NOTHING if one.ranks is None else f"{one.ranks:.2f}",
            *(str(count) if one.clear else NOTHING for count in one.counts),
        ]
        for one in agreements
    ]
    total = [sum(counts) for counts in zip(*(one.counts for one in agreements), strict=True)]
    return list(grid(heads, [*rows, ["**all**", "", "", *(f"**{count}**" for count in total)]]))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("first", type=Path, help="folder that longlive evaluate wrote")
    parser.add_argument("second", type=Path, help="another of the same study")
    args = parser.parse_args(argv)
    try:
        tables = [build_table(folder, Study.load(folder)) for folder in (args.first, args.second)]
        found = compare(*tables)
        if not any(one.variants for one in found):
            raise UserError("the two have no variant in common that both have judged")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(lines_of(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
