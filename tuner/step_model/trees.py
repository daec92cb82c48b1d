"""Boosted regression trees as plain lists: saved as JSON, evaluated without scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

LEAF = -1


@dataclass(frozen=True, kw_only=True)
class Tree:
    """One tree over N nodes, node 0 the root.

    Node i goes to ``left[i]`` where ``row[feature[i]] <= threshold[i]``, else to ``right[i]``;
    a leaf has ``feature`` -1 and answers ``value[i]``.
    """

    feature: tuple[int, ...]
    threshold: tuple[float, ...]
    left: tuple[int, ...]
    right: tuple[int, ...]
    value: tuple[float, ...]

    def predict(self, row: Sequence[float]) -> float:
        node = 0
        while (feature := self.feature[node]) != LEAF:
            is_left = row[feature] <= self.threshold[node]
            node = self.left[node] if is_left else self.right[node]
        return self.value[node]


@dataclass(frozen=True, kw_only=True)
class Trees:
    """A sum of trees on top of ``baseline``."""

    baseline: float
    trees: tuple[Tree, ...]

    def predict(self, row: Sequence[float]) -> float:
        """The ensemble's answer for one row of finite features."""
        return self.baseline + sum(tree.predict(row) for tree in self.trees)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Trees:
        return cls(
            baseline=raw["baseline"],
            trees=tuple(
                Tree(**{name: tuple(values) for name, values in tree.items()})
                for tree in raw["trees"]
            ),
        )
