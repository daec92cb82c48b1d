"""Text that shows what engines leave out."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from engine.server.shown import ShownText, TextWish
from engine.spec.request import FinishReason, RequestOutput

END = 0


class Letters:
    """Token i is the i-th letter; nothing is held back."""

    def push(self, token_id: int) -> str:
        return "|abc"[token_id]

    def flush(self) -> str:
        return ""


def _outputs(ids: Sequence[int], cuts: set[int], reason: FinishReason) -> list[RequestOutput]:
    """The ids in outputs that end at ``cuts``."""
    bounds = [0, *sorted(c for c in cuts if 0 < c < len(ids)), len(ids)]
    parts = [tuple(ids[a:b]) for a, b in itertools.pairwise(bounds)]
    return [
        RequestOutput(
            request_id="r",
            token_ids=part,
            text="",
            finish_reason=reason if index == len(parts) - 1 else None,
            token_s=0.0,
        )
        for index, part in enumerate(parts)
    ]


def _shown(
    ids: Sequence[int],
    *,
    stops: tuple[str, ...],
    shows_stop: bool,
    reason: FinishReason,
    cuts: set[int],
) -> str:
    wish = TextWish(shows_special=True, shows_stop=shows_stop)
    text = ShownText(Letters(), stops, {END}, wish)
    return "".join(text.of(output) for output in _outputs(ids, cuts, reason))


@given(
    ids=st.lists(st.integers(1, 3), min_size=1, max_size=12),
    stops=st.lists(st.text("abc", min_size=1, max_size=3), max_size=3).map(tuple),
    shows_stop=st.booleans(),
    cuts=st.sets(st.integers(1, 11)),
)
def test_text_ends_before_or_after_the_first_stop_however_it_is_cut(
    ids: list[int], stops: tuple[str, ...], shows_stop: bool, cuts: set[int]
) -> None:
    shown = _shown(ids, stops=stops, shows_stop=shows_stop, reason=FinishReason.LENGTH, cuts=cuts)
    whole = "".join("|abc"[i] for i in ids)
    ends = [whole.find(stop) + len(stop) for stop in stops if stop in whole]
    if not ends:
        assert shown == whole
        return
    # The stop that is complete first counts; of several, the one that began first.
    found = [stop for stop in stops if whole[: min(ends)].endswith(stop)]
    start = min(ends) - max(map(len, found))
    if not shows_stop:
        assert shown == whole[:start]
    else:
        assert shown in {whole[:start] + stop for stop in found if whole.startswith(stop, start)}


def test_tokens_after_the_stop_do_not_belong_to_the_choice() -> None:
    wish = TextWish(shows_special=True)
    text = ShownText(Letters(), ("bc",), {END}, wish)
    first, second = _outputs([1, 2, 3, 1, 1], {4}, FinishReason.LENGTH)
    assert (text.of(first), text.num_used, text.is_stopped) == ("a", 3, True)
    assert (text.of(second), text.num_used) == ("", 0)


def test_a_stop_string_counts_only_after_min_tokens() -> None:
    wish = TextWish(shows_stop=True)
    text = ShownText(Letters(), ("ab",), {END}, wish, min_tokens=2)
    (output,) = _outputs([1, 2, 1, 2, 3], set(), FinishReason.LENGTH)
    assert text.of(output) == "abab"
    assert text.num_used == 4


def test_a_stop_string_may_begin_within_min_tokens() -> None:
    text = ShownText(Letters(), ("bc",), {END}, TextWish(shows_special=True), min_tokens=2)
    (output,) = _outputs([1, 2, 3, 1], set(), FinishReason.LENGTH)
    assert (text.of(output), text.num_used, text.is_stopped) == ("a", 3, True)


def test_a_token_that_ends_the_output_is_shown_only_where_asked_for() -> None:
    ends = {"stops": (), "reason": FinishReason.STOP, "cuts": {1}}
    assert _shown([1, 2, END], shows_stop=False, **ends) == "ab"
    assert _shown([1, 2, END], shows_stop=True, **ends) == "ab|"


def test_text_held_back_for_a_stop_string_comes_with_the_end() -> None:
    shown = _shown([1, 2], stops=("bc",), shows_stop=False, reason=FinishReason.LENGTH, cuts={1})
    assert shown == "ab"
