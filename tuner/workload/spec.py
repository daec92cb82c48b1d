"""The text of a workload SPEC as a value: kind, path and words, each inside its range."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from engine.spec.names import did_you_mean
from tuner.spec.errors import WorkloadError
from tuner.workload.bounds import WORD_BOUNDS
from tuner.workload.joint_lengths import TraceLengths
from tuner.workload.lengths import LengthLaw, parse_law
from tuner.workload.traces import trace_words, words_of

AZURE_LIKE = "azure-like"
CLOSED = "closed"
MAX_SPEC_CHARS = 4096
# A path may hold a comma: options start at the first ",word=".
_OPTIONS = re.compile(r",(?=\s*[a-z_]+\s*=)")
_LENGTH_WORDS = ("input", "output", "input_cv", "output_cv")
_LENGTHS = "lengths"
# Words of each process, the needed ones and the optional ones.
_PROCESS_WORDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "poisson": (("rate", "input", "output"), _LENGTH_WORDS),
    "gamma": (("rate", "cv", "input", "output"), _LENGTH_WORDS),
    "step": (("rate", "to", "at", "input", "output"), _LENGTH_WORDS),
    "ramp": (("rate", "to", "input", "output"), _LENGTH_WORDS),
    "burst": (("rate", "peak", "on_s", "off_s", "input", "output"), _LENGTH_WORDS),
    AZURE_LIKE: ((), ()),
    CLOSED: (("concurrency", "input", "output", "requests"), (*_LENGTH_WORDS, "stagger_s")),
}
_CUT_WORDS = (
    "start",
    "seconds",
    "requests",
    "keep",
    "scale",
    "input_scale",
    "output_scale",
    "max_input",
    "max_output",
)


@dataclass(frozen=True, kw_only=True)
class WorkloadSpec:
    """A SPEC that was read. Nothing is built or opened yet.

    ``path`` is the file it reads: a trace, or that of ``lengths``, a trace whose lengths a process
    takes. ``laws`` are those of lengths that vary by another one than ``input_cv=`` and
    ``output_cv=`` say; ``words`` has their means.
    """

    text: str
    kind: str
    path: Path | None
    words: Mapping[str, float]
    laws: Mapping[str, LengthLaw] = field(default_factory=dict)
    lengths: TraceLengths | None = None

    @property
    def is_trace(self) -> bool:
        """Whether its requests come as a file has them."""
        return self.path is not None and self.lengths is None

    @classmethod
    def parse(cls, text: str) -> WorkloadSpec:
        """Read a SPEC.

        Raises:
            WorkloadError: an unknown kind or word, a missing one, or a value outside its range.
        """
        _check_text(text)
        kind, has_colon, rest = text.partition(":")
        kind = kind.strip()
        traces = trace_words()
        kinds = (*traces, *_PROCESS_WORDS)
        if not has_colon or kind not in kinds:
            known = ", ".join(f"{k}:" for k in kinds)
            near = f" (a file is auto:{kind})" if Path(kind).suffix else did_you_mean(kind, kinds)
            raise WorkloadError(
                f"workload {text!r}: unknown kind {kind!r}{near}; known are {known}"
            )
        if kind in traces:
            return _trace_spec(text, kind, rest)
        parts, lengths = _take_lengths(text, rest)
        laws: dict[str, LengthLaw] = {}
        words = _process_words(text, kind, parts, laws, has_lengths=lengths is not None)
        path = None if lengths is None else lengths.path
        return cls(text=text, kind=kind, path=path, words=words, laws=laws, lengths=lengths)

    def at(self, path: Path) -> str:
        """The text of the same SPEC whose file lies at ``path``.

        Raises:
            WorkloadError: a path that reads as an option.
        """
        first, *options = _OPTIONS.split(self.text.partition(":")[2])
        if self.lengths is None:
            first = str(path)
        else:
            moved = f"{_LENGTHS}={replace(self.lengths, path=path)}"
            first, *options = (moved if _is_lengths(p) else p for p in (first, *options))
        text = ",".join([f"{self.kind}:{first}", *options])
        if WorkloadSpec.parse(text).path != path:
            raise WorkloadError(f"workload {self.text!r}: {str(path)!r} reads as an option")
        return text

    def without(self, *words: str) -> WorkloadSpec:
        """The same SPEC without some of its words."""
        return replace(self, words={w: v for w, v in self.words.items() if w not in words})


def _check_text(text: str) -> None:
    if len(text) > MAX_SPEC_CHARS:
        raise WorkloadError(
            f"workload {text[:40]!r}...: {len(text)} characters; at most {MAX_SPEC_CHARS}"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise WorkloadError(
            f"workload {text!r}: holds a lone surrogate, which is no character"
        ) from error
    if "\0" in text:
        raise WorkloadError(f"workload {text!r}: holds a null character")


def _trace_spec(text: str, kind: str, rest: str) -> WorkloadSpec:
    path_text, *options = _OPTIONS.split(rest)
    if not path_text.strip():
        raise WorkloadError(f"workload {text!r}: no path; write it as in {kind}:PATH,seconds=60")
    words = _numbers(text, kind, options, (*_CUT_WORDS, *words_of(kind)))
    return WorkloadSpec(text=text, kind=kind, path=Path(path_text.strip()), words=words)


def _is_lengths(part: str) -> bool:
    return part.partition("=")[0].strip() == _LENGTHS


def _take_lengths(text: str, rest: str) -> tuple[list[str], TraceLengths | None]:
    """The parts of a process's words but ``lengths=``, and what that says."""
    if not rest.strip():
        return [], None
    parts = _OPTIONS.split(rest)
    found = [part.partition("=")[2] for part in parts if _is_lengths(part)]
    if not found:
        return rest.split(","), None
    if len(found) > 1:
        raise WorkloadError(f"workload {text!r}: {_LENGTHS}= stands twice")
    others = [part for part in parts if not _is_lengths(part)]
    return others, TraceLengths.parse(text, found[0].strip())


def _process_words(
    text: str, kind: str, parts: list[str], laws: dict[str, LengthLaw], *, has_lengths: bool
) -> dict[str, float]:
    """The words by name; ``laws`` gets those of the lengths that have one. ``has_lengths``: a
    trace says both lengths."""
    needed, optional = _PROCESS_WORDS[kind]
    if has_lengths:
        _check_lengths(text, kind, parts)
        needed = tuple(word for word in needed if word not in _LENGTH_WORDS)
        optional = tuple(word for word in optional if word not in _LENGTH_WORDS)
    words = _numbers(text, kind, parts, (*needed, *optional, *_CUT_WORDS), laws)
    for word in needed:
        if word not in words:
            example = ",".join(f"{w}=.." for w in needed)
            raise WorkloadError(f"workload {text!r}: {word}= is missing; write {kind}:{example}")
    for word in laws:
        if f"{word}_cv" in words:
            raise WorkloadError(
                f"workload {text!r}: {word}= says how it varies; leave {word}_cv= out"
            )
    if kind == CLOSED and "start" in words:
        raise WorkloadError(f"workload {text!r}: start= has no meaning in a closed loop")
    return words


def _check_lengths(text: str, kind: str, parts: list[str]) -> None:
    """Raises WorkloadError if a process has its own lengths, or if words give them too."""
    if kind == AZURE_LIKE:
        raise WorkloadError(f"workload {text!r}: {kind} has lengths of its own; leave lengths= out")
    for part in parts:
        word = part.partition("=")[0].strip()
        if word in _LENGTH_WORDS:
            raise WorkloadError(
                f"workload {text!r}: {_LENGTHS}= says both lengths; leave {word}= out"
            )


def _numbers(
    text: str,
    kind: str,
    parts: list[str],
    known: tuple[str, ...],
    laws: dict[str, LengthLaw] | None = None,
) -> dict[str, float]:
    words: dict[str, float] = {}
    for part in parts:
        word, _, raw = (piece.strip() for piece in part.partition("="))
        if word not in known:
            takes_lengths = () if laws is None or kind == AZURE_LIKE else (_LENGTHS,)
            listed = ", ".join(dict.fromkeys((*known, *takes_lengths)))
            near = did_you_mean(word, known)
            # Of a path, options begin at the first comma before a word and "=".
            is_path = laws is None and not near
            way_out = f"; a file with ',{word}=' in its path: rename it" if is_path else ""
            raise WorkloadError(
                f"workload {text!r}: unknown word {word!r}{near}; {kind}: takes {listed}{way_out}"
            )
        if word in words:
            raise WorkloadError(f"workload {text!r}: {word}= stands twice")
        if laws is not None and word in ("input", "output") and ":" in raw:
            laws[word] = parse_law(text, word, raw)
            words[word] = laws[word].mean
        else:
            words[word] = WORD_BOUNDS[word].check(text, word, raw)
    return words
