"""What each degree of tensor parallelism brings: a step's shares, its speed-up, t_e."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tuner.work.scaling import Amdahl, find_optimal_degree, fit_amdahl

# A doubling that makes a step at least this much faster gives half of what it could.
WORTH_GAIN = 0.5


@dataclass(frozen=True, kw_only=True)
class Degree:
    """One instance of TP degree ``tp``: a step of a fixed size, how much of it does not scale, and
    output tokens per second with ``num_seqs`` sequences, which fill its memory."""

    tp: int
    step_s: float
    communication_s: float
    host_s: float
    launch_s: float
    num_seqs: int
    throughput_tokens_per_s: float

    @property
    def compute_s(self) -> float:
        """What is left: the ranks' work itself."""
        return self.step_s - self.communication_s - self.host_s - self.launch_s


@dataclass(frozen=True, kw_only=True)
class Trick:
    """How much faster steps are with it than without (``gain``; None: not known here)."""

    name: str
    is_on: bool
    gain: float | None

    def __str__(self) -> str:
        if self.gain is None:
            return f"{self.name} is {'on' if self.is_on else 'off'}"
        gain = f"{100 * self.gain:.1f} %"
        return f"{self.name} {'is on and gains' if self.is_on else 'would gain'} {gain}"


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """A decode step of ``num_seqs`` sequences at ``context_tokens`` over the degrees that fit."""

    num_devices: int
    num_seqs: int
    context_tokens: int
    degrees: tuple[Degree, ...]
    tricks: tuple[Trick, ...] = ()

    @property
    def gains(self) -> dict[int, float]:
        """How much faster each doubling makes the step, by the degree it reaches."""
        return {b.tp: a.step_s / b.step_s - 1 for a, b in pairwise(self.degrees)}

    @property
    def knee(self) -> int:
        """The degree up to which each doubling makes a step faster by ``WORTH_GAIN`` or more."""
        reached = self.degrees[0].tp
        for tp, gain in self.gains.items():
            if gain < WORTH_GAIN:
                break
            reached = tp
        return reached

    @property
    def gain_beyond(self) -> float | None:
        """The most that a doubling beyond the knee brings; None where there is none."""
        return max((gain for tp, gain in self.gains.items() if tp > self.knee), default=None)

    @property
    def optimal_degree(self) -> int | None:
        """t_e, see :func:`find_optimal_degree`."""
        known = {d.tp: d.throughput_tokens_per_s for d in self.degrees}
        most = max(known, default=1)
        every = [2**i for i in range(most.bit_length())]
        return find_optimal_degree({t: known.get(t, 0.0) for t in every}, self.num_devices)

    @property
    def most_per_device(self) -> int:
        """The degree with the highest throughput per device."""
        return max(self.degrees, key=lambda d: d.throughput_tokens_per_s / d.tp).tp

    def efficiency(self, degree: Degree) -> float:
        """Throughput per device, as a share of the best degree's."""
        best = next(d for d in self.degrees if d.tp == self.most_per_device)
        return (degree.throughput_tokens_per_s / degree.tp) / (
            best.throughput_tokens_per_s / best.tp
        )

    @property
    def law(self) -> Amdahl | None:
        """Amdahl's law through the steps; None with fewer than two degrees."""
        if len(self.degrees) < 2:
            return None
        return fit_amdahl({d.tp: d.step_s for d in self.degrees})

    @property
    def text(self) -> str:
        """What it comes to."""
        if not self.degrees:
            return "no degree of tensor parallelism fits these devices"
        step = f"decodes of {self.num_seqs} sequences at {self.context_tokens} tokens"
        told = [*self._doublings(step), self._shares(), self._best()]
        if self.tricks:
            told.append(f"at tp={self.knee} {' and '.join(map(str, self.tricks))}")
        return "; ".join(told)

    def _doublings(self, step: str) -> list[str]:
        if len(self.degrees) < 2:
            return [f"only tp={self.degrees[0].tp} fits ({step})"]
        if self.gain_beyond is None:
            least = math.floor(100 * min(self.gains.values()))
            return [f"up to tp={self.knee} each doubling makes a step {least} % or more faster "
                    f"({step})"]  # fmt: skip
        if self.gain_beyond <= 0:
            return [f"beyond tp={self.knee} no doubling makes a step faster ({step})"]
        most = math.ceil(100 * self.gain_beyond + 1e-9)
        return [f"beyond tp={self.knee} each doubling gains less than {most} % ({step})"]

    def _shares(self) -> str:
        last = self.degrees[-1]
        communication, host = (
            100 * part / last.step_s for part in (last.communication_s, last.host_s)
        )
        return (
            f"at tp={last.tp} a step is {communication:.0f} % communication and {host:.0f} % host"
        )

    def _best(self) -> str:
        if (best := self.optimal_degree) is not None:
            count = self.num_devices // best
            instances = "1 instance" if count == 1 else f"{count} instances"
            return f"t_e={best}: {instances} of tp={best} carry the most"
        return f"no t_e; tp={self.most_per_device} carries most per device"

    def to_json(self) -> dict[str, Any]:
        """Numbers and the sentence."""
        law = self.law
        known = bool(self.degrees)
        return {
            "num_devices": self.num_devices,
            "num_seqs": self.num_seqs,
            "context_tokens": self.context_tokens,
            "degrees": [
                {
                    "tp": d.tp,
                    "step_ms": 1e3 * d.step_s,
                    "shares": {
                        "compute": d.compute_s / d.step_s,
                        "launch": d.launch_s / d.step_s,
                        "communication": d.communication_s / d.step_s,
                        "host": d.host_s / d.step_s,
                    },
                    "gain": self.gains.get(d.tp),
                    "num_seqs": d.num_seqs,
                    "throughput_tokens_per_s": d.throughput_tokens_per_s,
                    "efficiency": self.efficiency(d),
                }
                for d in self.degrees
            ],
            "knee": self.knee if known else None,
            "gain_beyond": self.gain_beyond,
            "optimal_degree": self.optimal_degree if known else None,
            "most_per_device": self.most_per_device if known else None,
            "serial_share": None if law is None else law.serial_share,
            "tricks": [vars(trick) for trick in self.tricks],
            "text": self.text,
        }
