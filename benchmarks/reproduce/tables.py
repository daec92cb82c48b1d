"""Cells of a paper's table beside what simulation gives, and Markdown of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

# Published values closer than this are not asked to be in order.
ORDER_MARGIN = 0.05


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One published number and its prediction, in the same unit."""

    what: str
    published: float
    predicted: float

    @property
    def error(self) -> float:
        """How far the prediction is above (+) or below (-) the published value, as a share."""
        return self.predicted / self.published - 1.0


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Something a paper says in words, and whether the simulation agrees."""

    what: str
    found: str
    holds: bool


def cell_table(cells: Sequence[Cell], limit: float) -> list[str]:
    """Markdown: every cell with its error, and whether that is within ``limit``."""
    rows = [
        (
            cell.what,
            number(cell.predicted),
            number(cell.published),
            f"{cell.error:+.1%}",
            yes(abs(cell.error) <= limit),
        )
        for cell in cells
    ]
    within = sum(abs(cell.error) <= limit for cell in cells)
    return [
        *table(("", "predicted", "published", "error", f"within {limit:.0%}"), rows),
        f"{within} of {len(cells)} cells within {limit:.0%}.",
        "",
    ]


def claim_table(claims: Iterable[Claim], who: str = "the paper says") -> list[str]:
    """Markdown: what a paper says, what was found, and whether it holds."""
    return table(
        (who, "simulated", "holds"),
        [(claim.what, claim.found, yes(claim.holds)) for claim in claims],
    )


def wrong_orders(
    published: Mapping[str, float], predicted: Mapping[str, float]
) -> list[tuple[str, str]]:
    """Pairs (smaller, larger) whose published values differ by more than 5 %, and whose predicted
    ones are the other way round."""
    pairs = [
        sorted(pair, key=published.__getitem__) for pair in itertools.combinations(published, 2)
    ]
    return [
        (low, high)
        for low, high in pairs
        if published[high] > (1 + ORDER_MARGIN) * published[low]
        and predicted[high] <= predicted[low]
    ]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Markdown; the first column is text, the others are numbers. Ends with an empty line."""
    return [
        f"| {' | '.join(head)} |",
        f"|---|{'---:|' * (len(head) - 1)}",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
    ]


def yes(is_so: bool) -> str:
    return "yes" if is_so else "**no**"


def number(value: float) -> str:
    """Three significant digits, or whole thousands with a separator."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}"
