"""What callers see: stop strings across token borders, text held back, ends with a reason."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.replica.stream import OnOutput, RequestStream
from engine.spec.measurement import Outcome
from engine.spec.request import FinishReason, Request, RequestOutput, SamplingParams, TokenLogprobs
from engine.text.detokenizer import StopFinder, TextStream

pieces = st.lists(st.text(alphabet="abc", max_size=3), max_size=12)
stops = st.lists(st.text(alphabet="abc", min_size=1, max_size=4), min_size=1, max_size=3)


@given(pieces, stops)
def test_shown_text_ends_exactly_before_the_first_stop_string(
    pieces: list[str], stops: list[str]
) -> None:
    finder, shown = StopFinder(tuple(stops)), ""
    seen = ""
    for piece in pieces:
        text, is_stopped = finder.push(piece)
        shown, seen = shown + text, seen + piece
        if is_stopped:
            assert any(stop in seen for stop in stops)
            assert not any(stop in shown for stop in stops)
            assert seen.startswith(shown)
            return
    assert not any(stop in seen for stop in stops)
    assert shown + finder.flush() == seen


@given(pieces, stops, st.integers(0, 6))
def test_a_stop_string_counts_where_it_is_completed(
    pieces: list[str], stops: list[str], first_that_counts: int
) -> None:
    finder, shown, seen = StopFinder(tuple(stops)), "", ""
    for number, piece in enumerate(pieces):
        text, is_stopped = finder.push(piece, counts=number >= first_that_counts)
        # Those that end in this piece, wherever they begin.
        starts = [(seen + piece).find(stop, max(0, len(seen) + 1 - len(stop))) for stop in stops]
        found = [at for at in starts if at >= 0]
        shown, seen = shown + text, seen + piece
        assert is_stopped == (bool(found) and number >= first_that_counts)
        if is_stopped:
            assert shown == seen[: min(found)]
            return
    assert shown + finder.flush() == seen


class Late:
    """Shows every letter only at the end, as an unfinished character is shown."""

    def __init__(self) -> None:
        self._held = ""

    def push(self, token_id: int) -> str:
        self._held += chr(ord("a") + token_id)
        return ""

    def flush(self) -> str:
        return self._held


class Letters:
    """Token i is the letter i; nothing is ever incomplete."""

    def push(self, token_id: int) -> str:
        return chr(ord("a") + token_id)

    def flush(self) -> str:
        return ""


def stream(
    *,
    stop: tuple[str, ...] = (),
    min_tokens: int = 0,
    text: TextStream | None = None,
    on_output: OnOutput = lambda output: None,
) -> RequestStream:
    sampling = SamplingParams(max_tokens=9, stop=stop, min_tokens=min_tokens)
    request = Request(request_id="r", prompt_ids=(1,), sampling=sampling)
    return RequestStream(request, on_output, text or Letters())


def test_a_stop_string_ends_the_request_and_is_not_shown() -> None:
    way = stream(stop=("cd",))
    outputs = [way.take(i, None, float(i)) for i in range(4)]
    assert [o.finish_reason for o in outputs] == [None, None, None, FinishReason.STOP]
    assert "".join(output.text for output in outputs) == "ab"


def test_a_stop_string_that_is_complete_within_min_tokens_does_not_count() -> None:
    way = stream(stop=("ab",), min_tokens=4)
    outputs = [way.take(i, None, 0.0) for i in (0, 1, 0, 1, 0, 1)]
    assert [o.finish_reason for o in outputs] == [None, None, None, None, None, FinishReason.STOP]
    assert "".join(output.text for output in outputs) == "abab"


def test_a_stop_string_that_begins_within_min_tokens_and_ends_behind_counts() -> None:
    way = stream(stop=("b", "abc"), min_tokens=2)
    outputs = [way.take(i, None, 0.0) for i in (0, 1, 2)]
    assert [o.finish_reason for o in outputs] == [None, None, FinishReason.STOP]
    assert "".join(output.text for output in outputs) == ""


def test_a_stop_string_that_only_the_end_completes_is_the_reason_of_the_end() -> None:
    way = stream(stop=("bc",), text=Late())
    assert [way.take(i, None, 0.0).finish_reason for i in (0, 1)] == [None, None]
    output = way.take(2, FinishReason.LENGTH, 0.0)
    assert (output.text, output.finish_reason) == ("a", FinishReason.STOP)


def test_text_held_for_a_stop_string_is_shown_when_the_length_limit_comes_first() -> None:
    assert stream(stop=("cd",)).take(2, FinishReason.LENGTH, 0.0).text == "c"


def test_the_token_that_ends_a_request_by_its_id_is_counted_but_not_shown() -> None:
    way = stream()
    outputs = [way.take(0, None, 0.0), way.take(1, FinishReason.STOP, 1.0)]
    assert [output.text for output in outputs] == ["a", ""]
    assert way.timing(FinishReason.STOP).output_tokens == 2


def test_log_probabilities_come_with_the_token_they_belong_to() -> None:
    way = stream()
    found = TokenLogprobs(token_id=0, logprob=-0.5, rank=1, top=((0, -0.5), (3, -1.0)))
    outputs = [way.take(0, None, 0.0, found), way.take(1, FinishReason.LENGTH, 1.0)]
    assert [output.logprobs for output in outputs] == [(found,), ()]


def test_a_request_past_its_deadline_counts_as_an_error() -> None:
    outputs: list[RequestOutput] = []
    way = stream(on_output=outputs.append)
    way.take(0, None, 0.0)
    way.end(FinishReason.DEADLINE, 1.0, "its deadline passed")
    assert outputs[-1].finish_reason is FinishReason.DEADLINE
    assert way.timing(FinishReason.DEADLINE).outcome is Outcome.ERRORED
    assert way.timing(FinishReason.ABORT).outcome is Outcome.CUT


def test_a_caller_that_fails_is_told_of_and_raises_nothing() -> None:
    def fail(_output: RequestOutput) -> None:
        raise ValueError("the caller's own fault")

    way = stream(on_output=fail)
    assert not way.hand_out(way.take(0, None, 0.0))
    way.end(FinishReason.ABORT, 1.0)
