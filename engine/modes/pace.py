"""How long steps take here, learned while serving, so that chunks can be sized to a time."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from engine.spec.modes import Mode

_DECAY = 0.98
_MIN_SAMPLES = 4
# More tokens than any step holds.
MAX_STEP_TOKENS = 2**31
# The next step is scheduled this long before the running one is expected to end: a share of the
# running step, plus the larger of a multiple of the recent scheduling time and the time that a
# sleeping thread takes to wake up.
LEAD_SHARE = 0.1
LEAD_HOST_FACTOR = 4.0
MIN_LEAD_S = 0.0015


def ahead_lead_s(expected_s: float, host_s: float) -> float:
    """How long before the end of a step of ``expected_s`` to begin the ``host_s`` of scheduling."""
    return max(MIN_LEAD_S, LEAD_HOST_FACTOR * host_s) + LEAD_SHARE * expected_s


@dataclass
class _Line:
    """Exponentially weighted least squares of seconds over tokens."""

    weight: float = 0.0
    tokens: float = 0.0
    seconds: float = 0.0
    tokens_sq: float = 0.0
    cross: float = 0.0
    count: int = 0
    most_tokens: int = 0

    def observe(self, num_tokens: int, step_s: float) -> None:
        self.weight = self.weight * _DECAY + 1.0
        self.tokens = self.tokens * _DECAY + num_tokens
        self.seconds = self.seconds * _DECAY + step_s
        self.tokens_sq = self.tokens_sq * _DECAY + num_tokens * num_tokens
        self.cross = self.cross * _DECAY + num_tokens * step_s
        self.count += 1
        self.most_tokens = max(self.most_tokens, num_tokens)

    def fit(self) -> tuple[float, float]:
        """(seconds at zero tokens, seconds per token), both at least 0."""
        mean_n, mean_s = self.tokens / self.weight, self.seconds / self.weight
        variance = self.tokens_sq / self.weight - mean_n * mean_n
        covariance = self.cross / self.weight - mean_n * mean_s
        # With one size only, the tokens get the whole time, which is cautious for larger chunks.
        if variance < 0.25:
            return 0.0, mean_s / max(mean_n, 1.0)
        per_token = min(max(covariance / variance, 0.0), mean_s / max(mean_n, 1e-9))
        return mean_s - per_token * mean_n, per_token


class StepPace:
    """Seconds of a step as a straight line in its tokens, per mode, from the steps seen so far.

    A line is enough to size a chunk to ``max_step_ms``; the tuner's step model is the accurate
    one and lives to the right of the engine.
    """

    def __init__(self) -> None:
        self._lines: defaultdict[Mode, _Line] = defaultdict(_Line)
        # By mode and bit length of the step's token count. Unlike the lines, these never forget.
        self._slowest_s: dict[tuple[Mode, int], float] = {}

    def observe(self, mode: Mode, num_tokens: int, step_s: float) -> None:
        """Learn from one finished step."""
        self._lines[mode].observe(num_tokens, step_s)
        size = (mode, num_tokens.bit_length())
        self._slowest_s[size] = max(step_s, self._slowest_s.get(size, 0.0))

    def learn_from(self, other: StepPace) -> None:
        """Take over all that ``other`` has seen."""
        self._lines = other._lines
        self._slowest_s = other._slowest_s

    def slowest_seconds(self, mode: Mode, num_tokens: int) -> float | None:
        """How long a step of ``num_tokens`` may take at worst: as long as the slowest one of about
        its size. If there was none, the slowest of the next smaller size counts, scaled up by the
        tokens. None while too little was seen.

        Unlike :meth:`seconds` it never forgets: a prompt stays slow after thousands of decode
        steps.
        """
        usual_s = self.seconds(mode, num_tokens)
        if usual_s is None:
            return None
        bits = num_tokens.bit_length()
        seen = next((b for b in range(bits, -1, -1) if (mode, b) in self._slowest_s), None)
        if seen is None:
            return None
        growth = 1.0 if seen == bits else num_tokens / max(1, 1 << (seen - 1))
        return max(usual_s, self._slowest_s[mode, seen] * growth)

    def seconds(self, mode: Mode, num_tokens: int) -> float | None:
        """About how long a step of ``num_tokens`` takes; None while too little was seen.

        Beyond the largest step seen so far, time grows at least in proportion to the tokens: a flat
        line through small decode steps says nothing about a long prompt.
        """
        line = self._lines[mode]
        if line.count < _MIN_SAMPLES:
            return None
        fixed_s, per_token_s = line.fit()
        seconds = fixed_s + per_token_s * num_tokens
        if num_tokens > line.most_tokens:
            largest_s = fixed_s + per_token_s * line.most_tokens
            seconds = max(seconds, largest_s * num_tokens / line.most_tokens)
        return seconds

    def max_tokens(self, mode: Mode, max_step_ms: float) -> int | None:
        """Most tokens of a step that fits ``max_step_ms``; None while too little was seen."""
        line = self._lines[mode]
        if line.count < _MIN_SAMPLES:
            return None
        fixed_s, per_token_s = line.fit()
        if per_token_s <= 0.0:
            return None
        return int(min((max_step_ms * 1e-3 - fixed_s) / per_token_s, MAX_STEP_TOKENS))
