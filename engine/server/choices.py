"""From what an engine says about one choice to what its caller sees of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.server.answers import Choice
from engine.server.logprobs import LogprobWriter, WordedPosition
from engine.server.shown import ShownText
from engine.spec.request import FinishReason, RequestOutput

FAILURES = (FinishReason.ERROR, FinishReason.DEADLINE)


@dataclass(kw_only=True)
class ChoiceMaker:
    """Turns the outputs of one choice, in order, into pieces of an answer.

    ``opening`` goes before its first text (``echo``). ``shown`` makes the text where that of the
    engine is not enough; it may find the choice's end before the engine does.
    """

    index: int
    opening: str
    shown: ShownText | None
    writer: LogprobWriter | None
    has_token_ids: bool
    is_begun: bool = False
    is_over: bool = False

    def piece(self, output: RequestOutput) -> Choice:
        """What ``output`` adds. Its finish reason is None if the choice goes on or has failed."""
        text = output.text if self.shown is None else self.shown.of(output)
        reason = output.finish_reason if output.finish_reason not in FAILURES else None
        if self.shown is not None and self.shown.is_stopped:
            reason = FinishReason.STOP
        num_tokens = len(output.token_ids) if self.shown is None else self.shown.num_used
        opening = "" if self.is_begun else self.opening
        self.is_begun, self.is_over = True, reason is not None
        return Choice(
            index=self.index,
            text=opening + text,
            finish_reason=reason,
            num_tokens=num_tokens,
            token_ids=list(output.token_ids[:num_tokens]) if self.has_token_ids else None,
            logprobs=None
            if self.writer is None
            else self.writer.word(output.logprobs[:num_tokens]),
        )


@dataclass(kw_only=True)
class CollectedChoice:
    """All pieces of one choice so far."""

    texts: list[str] = field(default_factory=list)
    num_tokens: int = 0
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[WordedPosition] = field(default_factory=list)
    last: Choice | None = None

    def add(self, piece: Choice) -> None:
        self.texts.append(piece.text)
        self.num_tokens += piece.num_tokens
        self.token_ids += piece.token_ids or ()
        self.logprobs += piece.logprobs or ()
        self.last = piece

    def whole(self) -> Choice:
        """The pieces joined."""
        last = self.last
        assert last is not None, "every choice ends with an output"
        return Choice(
            index=last.index,
            text="".join(self.texts),
            finish_reason=last.finish_reason,
            num_tokens=self.num_tokens,
            token_ids=None if last.token_ids is None else self.token_ids,
            logprobs=None if last.logprobs is None else self.logprobs,
        )
