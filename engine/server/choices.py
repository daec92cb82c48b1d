"""From what an engine says about one choice to what its caller sees of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.server.answers import Choice
from engine.server.logprobs import LogprobWriter, WordedPosition
from engine.server.shown import ShownText
from engine.spec.request import FinishReason, RequestOutput, TokenLogprobs

# Log probabilities of a prompt, in the words of the caller's API.
TellPrompt = Callable[[Sequence[TokenLogprobs]], list[Any]]
FAILURES = (FinishReason.ERROR, FinishReason.DEADLINE)


@dataclass(kw_only=True)
class ChoiceMaker:
    """Turns the outputs of one choice, in order, into pieces of an answer.

    ``opening`` goes before its first text (``echo``), with the log probabilities of the prompt,
    whose first token is ``first_id``. ``shown`` makes the text if the engine's own is not enough;
    it may find the choice's end before the engine does. ``has_output`` is False if the caller wants
    no token: then the one that the engine gives anyway is left out.
    """

    index: int
    opening: str | None
    first_id: int
    has_output: bool
    shown: ShownText | None
    writer: LogprobWriter | None
    has_token_ids: bool
    tell_prompt: TellPrompt | None
    is_begun: bool = False
    is_over: bool = False

    def piece(self, output: RequestOutput) -> Choice:
        """What ``output`` adds. Its finish reason is None if the choice goes on or has failed."""
        text = output.text if self.shown is None else self.shown.of(output)
        reason = output.finish_reason if output.finish_reason not in FAILURES else None
        if self.shown is not None and self.shown.is_stopped:
            reason = FinishReason.STOP
        num_tokens = len(output.token_ids) if self.shown is None else self.shown.num_used
        if not self.has_output:
            text, num_tokens = "", 0
            reason = FinishReason.LENGTH if reason is FinishReason.STOP else reason
        opening, logprobs = self._opening(output)
        if logprobs is not None and self.writer is not None:
            logprobs += self.writer.word(output.logprobs[:num_tokens])
        told = None
        if self.tell_prompt is not None and not self.is_begun:
            told = self.tell_prompt(output.prompt_logprobs)
        self.is_begun, self.is_over = True, reason is not None
        return Choice(
            index=self.index,
            text=opening + text,
            finish_reason=reason,
            num_tokens=num_tokens,
            token_ids=list(output.token_ids[:num_tokens]) if self.has_token_ids else None,
            logprobs=logprobs,
            prompt_logprobs=told,
        )

    def _opening(self, output: RequestOutput) -> tuple[str, list[WordedPosition] | None]:
        """The text before that of ``output``, and its log probabilities."""
        is_shown = not self.is_begun and self.opening is not None
        text = self.opening if is_shown and self.opening is not None else ""
        if self.writer is None:
            return text, None
        if not is_shown or not output.token_ids:
            return text, []
        return text, self.writer.word_prompt(text, self.first_id, output.prompt_logprobs)


@dataclass(kw_only=True)
class CollectedChoice:
    """All pieces of one choice so far."""

    texts: list[str] = field(default_factory=list)
    num_tokens: int = 0
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[WordedPosition] = field(default_factory=list)
    prompt_logprobs: list[Any] | None = None
    last: Choice | None = None

    def add(self, piece: Choice) -> None:
        self.texts.append(piece.text)
        self.num_tokens += piece.num_tokens
        self.token_ids += piece.token_ids or ()
        self.logprobs += piece.logprobs or ()
        self.prompt_logprobs = self.prompt_logprobs or piece.prompt_logprobs
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
            prompt_logprobs=self.prompt_logprobs,
        )
