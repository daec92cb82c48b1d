from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from engine.spec.plan import ParallelPlan
from tuner.spec import digest as module
from tuner.spec.digest import digest, software_digest


@dataclass(frozen=True, kw_only=True)
class _Asked:
    plans: dict[ParallelPlan, tuple[int, ...]]
    refused: frozenset[int] = frozenset()
    scratch: dict[str, int] = field(default_factory=dict, compare=False)


ASKED = _Asked(plans={ParallelPlan(): (1,), ParallelPlan(tp=2): (2, 3)}, refused=frozenset({8, 9}))


def test_what_is_equal_has_one_digest_whatever_its_order() -> None:
    other = _Asked(
        plans=dict(reversed(ASKED.plans.items())),
        refused=frozenset({9, 8}),
        scratch={"not": 1},
    )
    assert other == ASKED
    assert digest(other, Path("a")) == digest(ASKED, Path("a"))


def test_a_difference_at_any_depth_shows() -> None:
    others = [
        replace(ASKED, refused=frozenset({8})),
        replace(ASKED, plans={**ASKED.plans, ParallelPlan(tp=2): (2, 4)}),
        replace(ASKED, plans={**ASKED.plans, ParallelPlan(tp=4): ()}),
    ]
    assert len({digest(each) for each in (ASKED, *others)}) == 4


def test_what_cannot_be_told_apart_is_refused() -> None:
    with pytest.raises(TypeError, match="object: its content"):
        digest([object()])


def test_a_changed_file_makes_it_another_software(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def now() -> str:
        software_digest.cache_clear()
        return software_digest()

    monkeypatch.setattr(module, "ROOT", tmp_path)
    (tmp_path / "tuner" / "devices").mkdir(parents=True)
    described = tmp_path / "tuner" / "devices" / "chip.json"
    described.write_text("{}")
    first = now()
    assert now() == first
    described.write_text('{"interval": 1}')
    second = now()
    described.rename(described.with_name("other.json"))
    assert len({first, second, now()}) == 3
    software_digest.cache_clear()
