"""Question: how well does simulation foresee published closed-loop runs of serving systems?

Every row of the data is simulated by itself, with the engine's own scheduler and a profile fitted
without the row's group (system, model, backend). The folds' parameters are those of the shipped
profiles; ``--refit`` fits them again (about half an hour on one core).

    python -m benchmarks.end_to_end --data ../shared/silicon --out FILE.md
"""

from __future__ import annotations

import argparse
import datetime
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.reporting import publish
from engine.spec.settings import Caps
from tuner.backends import Backend, load_profile
from tuner.backends.backend import Fitted
from tuner.calibration.served import SOURCES, fit_backend, parameters_of
from tuner.calibration.served_fit import relative_errors, simulate_rows, with_values
from tuner.calibration.served_rows import FILE, ServedRow, Simulated, Tool, read_served_rows
from tuner.calibration.step_errors import Coverage, coverages, needed_factors, of_system

FloatArray = npt.NDArray[np.float64]
COMMON_CLIENTS = (4, 8, 16, 32, 64, 128)
TARGETS = {"vLLM": (0.20, 0.05), "all": (0.30, 0.12)}


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Rows with their held-out simulations; ``errors`` f8[rows, 2] of TTFT and TPOT."""

    rows: tuple[ServedRow, ...]
    simulated: tuple[Simulated, ...]

    @property
    def errors(self) -> FloatArray:
        return relative_errors(self.rows, self.simulated)

    def where(self, keeps: Callable[[ServedRow], bool]) -> Judged:
        """The rows that ``keeps`` says yes to."""
        kept = [(row, s) for row, s in zip(self.rows, self.simulated, strict=True) if keeps(row)]
        return Judged(rows=tuple(row for row, _ in kept), simulated=tuple(s for _, s in kept))

    def having(self, name: str, value: object) -> Judged:
        """The rows whose ``name`` is ``value``."""
        return self.where(lambda row: getattr(row, name) == value)

    @property
    def cells(self) -> str:
        """Median and 90th percentile of |error| and the median error, TTFT then TPOT."""
        errors = self.errors
        sizes = np.abs(errors)
        middle, high = np.nanmedian(sizes, axis=0), np.nanquantile(sizes, 0.9, axis=0)
        bias = np.nanmedian(errors, axis=0)
        return " | ".join(f"{middle[i]:.1%} | {high[i]:.1%} | {bias[i]:+.1%}" for i in range(2))


HEAD = (
    "| {} | rows | TTFT median | p90 | bias | TPOT median | p90 | bias |",
    "|---|---:|---:|---:|---:|---:|---:|---:|",
)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder of measurements")
    parser.add_argument("--out", type=Path, help="write the report here too")
    parser.add_argument("--refit", action="store_true", help="fit every fold again")
    parser.add_argument("--coverage", action="store_true", help="judge intervals too")
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args(arguments)
    profiles = [
        fit_backend(name, options.data, processes=options.processes)
        if options.refit
        else load_profile(name)
        for name in SOURCES
    ]
    rows = read_served_rows(options.data)
    judged = judge(rows, profiles, options.data, processes=options.processes)
    report = "\n".join(
        [
            *_introduction(options),
            *_targets(judged),
            *_groups(judged),
            *_by_concurrency(judged),
            *_by_degree(judged),
            *(_coverage(rows, profiles, options) if options.coverage else ()),
            *_by_length(judged),
            *_parameters(profiles),
            *_limits(judged, profiles, options.data),
            *_mended(judged),
        ]
    )
    publish(report + "\n", options.out)
    return 0


def judge(rows: list[ServedRow], profiles: list[Backend], data: Path, *, processes: int) -> Judged:
    """Every row simulated with the parameters of the fold that never saw its group; a group that
    no fold knows with the shipped profile, which never saw it either."""
    found: list[tuple[ServedRow, Simulated]] = []
    for profile in profiles:
        parameters = parameters_of(profile.name, data)
        values = {fold.group: fold.values for fold in _fitted(profile).held_out}
        mine = [row for row in rows if row.backend == profile.name]
        for group in sorted({row.group for row in mine}):
            known = values.get(group)
            served = with_values(profile, parameters, known) if known else profile
            held_out = [row for row in mine if row.group == group]
            simulated = simulate_rows(held_out, served, processes=processes)
            found += zip(held_out, simulated, strict=True)
    return Judged(rows=tuple(row for row, _ in found), simulated=tuple(s for _, s in found))


def _introduction(options: argparse.Namespace) -> Iterator[str]:
    option = f" --processes {options.processes}" if options.processes > 1 else ""
    option += " --coverage" if options.coverage else ""
    yield "# Closed-loop runs of serving systems, simulated one by one"
    yield ""
    yield f"* Date: {datetime.datetime.now(tz=datetime.UTC).date()}; seed 0"
    yield f"* Versions: Python {platform.python_version()}, numpy {version('numpy')}"
    yield (
        f"* Command: `python -m benchmarks.end_to_end --data ../shared/silicon{option} "
        "--out FILE.md`"
    )
    yield f"* Data: `{FILE}`, published with NVIDIA AIConfigurator; nothing was timed here."
    yield "* Errors are (simulated - measured) / measured; medians and p90 are of their size."
    yield "* Leave one (system, model, backend) group out: the profile that a row is simulated with"
    yield "  was fitted without its group. What only that group could tell stays at its start."
    yield "* How the load tools and their servers were set (*Tools and prompt lengths*), and that a"
    yield "  request joins the step after next, were found on all groups together: no fold of an"
    yield "  outer loop was kept apart for them."
    yield ""


def _targets(judged: Judged) -> Iterator[str]:
    yield "| rows | number | TTFT median | target | TPOT median | target |"
    yield "|---|---:|---:|---:|---:|---:|"
    kept = {"vLLM": judged.having("backend", "vllm"), "all": judged}
    for name, (ttft, tpot) in TARGETS.items():
        middle = np.nanmedian(np.abs(kept[name].errors), axis=0)
        count = len(kept[name].rows)
        yield f"| {name} | {count} | {middle[0]:.1%} | {ttft:.0%} | {middle[1]:.1%} | {tpot:.0%} |"
    yield ""
    yield "AIConfigurator's own medians on rows like these, as published with the data: vLLM 43-46%"
    yield "TTFT and 4-11% TPOT; TensorRT-LLM 40-60% and 9-35% (means)."
    yield ""


def _groups(judged: Judged) -> Iterator[str]:
    yield "## Groups, each held out"
    yield ""
    yield from (line.format("group") for line in HEAD)
    for group in sorted({row.group for row in judged.rows}):
        yield _line(group, judged.having("group", group))
    yield _line("all", judged)
    yield ""


def _by_concurrency(judged: Judged) -> Iterator[str]:
    yield "## Bias against concurrency"
    yield ""
    yield from (line.format("concurrency") for line in HEAD)
    for clients in sorted({row.concurrency for row in judged.rows}):
        part = judged.having("concurrency", clients)
        if len(part.rows) > 1:
            yield _line(str(clients), part)
    yield ""
    yield "Median error of TTFT / TPOT per group:"
    yield ""
    columns = COMMON_CLIENTS
    yield "| group | " + " | ".join(map(str, columns)) + " |"
    yield "|---|" + "---:|" * len(columns)
    for group in sorted({row.group for row in judged.rows}):
        cells = []
        for clients in columns:
            part = judged.having("group", group).having("concurrency", clients)
            bias = np.nanmedian(part.errors, axis=0) if part.rows else None
            cells.append("" if bias is None else f"{bias[0]:+.0%} / {bias[1]:+.0%}")
        yield f"| {group} | " + " | ".join(cells) + " |"
    yield ""


def _by_degree(judged: Judged) -> Iterator[str]:
    yield "## Bias against the tensor-parallel degree"
    yield ""
    yield from (line.format("tp") for line in HEAD)
    for degree in sorted({row.tp for row in judged.rows}):
        yield _line(str(degree), judged.having("tp", degree))
    yield ""
    yield "vLLM alone:"
    yield ""
    yield from (line.format("tp") for line in HEAD)
    ours = judged.having("backend", "vllm")
    for degree in sorted({row.tp for row in ours.rows}):
        yield _line(str(degree), ours.having("tp", degree))
    yield ""


def _coverage(
    rows: list[ServedRow], profiles: list[Backend], options: argparse.Namespace
) -> Iterator[str]:
    yield "## Coverage of 90 % intervals"
    yield ""
    yield "Step times may be off by what is to be expected of another group: by what runs of the"
    yield "same system's other groups do, and what groups of all systems differ by; the share of a"
    yield "group's runs that such an interval holds:"
    yield ""
    yield "| group | rows | TTFT | TPOT |"
    yield "|---|---:|---:|---:|"
    needed = [
        each
        for profile in profiles
        for each in needed_factors(rows, profile, options.data, processes=options.processes)
    ]
    every: list[Coverage] = []
    for profile in profiles:
        every += coverages(*of_system(needed, profile.name))
    for held in every:
        yield f"| {held.group} | {held.rows} | {held.ttft:.0%} | {held.tpot:.0%} |"
    count = sum(held.rows for held in every)
    ttft, tpot = (
        sum(h.rows * getattr(h, name) for h in every) / count for name in ("ttft", "tpot")
    )
    yield f"| all runs | {count} | {ttft:.0%} | {tpot:.0%} |"
    yield ""


def _by_length(judged: Judged) -> Iterator[str]:
    yield "## Tools and prompt lengths"
    yield ""
    yield "Two tools measured these rows. Rows without a version are InferenceMAX's, whose public"
    yield "scripts draw lengths between 0.8 of the nominal one and all of it, send ten requests"
    yield "per client, and set vLLM 0.10.2 to a budget of 8,192 tokens, asynchronous scheduling"
    yield "and the pass that fuses all-reduce, norm and rounding; TensorRT-LLM to a budget of"
    yield "16,384 tokens, ten tokens of an answer sent together, and, for 1,024/1,024 below TP 8,"
    yield "prompts that wait up to 20 steps for others. The others have fixed lengths and servers"
    yield "set in ways nobody wrote down: a budget of one prompt beside the running sequences"
    yield "fits both systems, all lengths and degrees. Over how many requests their means were"
    yield "taken, the means tell: their product with it is a whole number of nanoseconds. Of vLLM"
    yield "ten per client, of TensorRT-LLM 20, and 2,000 with 128 clients. All rounds are"
    yield "simulated, but of more than 32 clients with fixed lengths four: those between the second"
    yield "and the last are alike."
    yield ""
    yield from (line.format("tool, prompt tokens") for line in HEAD)
    for tool in Tool:
        for length in sorted({row.input_tokens for row in judged.rows if row.tool is tool}):
            part = judged.having("tool", tool).having("input_tokens", length)
            yield _line(f"{tool}, {length:,}", part)
    yield ""


def _parameters(profiles: list[Backend]) -> Iterator[str]:
    yield "## Parameters of every fold"
    yield ""
    yield "Host times of a step and a sequence start from a 2023 engine's (Vidur's measurement, two"
    yield "ranks, without Ray's messages). Kernels are as the device's curves have them (vLLM's);"
    yield "factors of TensorRT-LLM's fp8 products are from published timings of single products."
    for profile in profiles:
        fitted = _fitted(profile)
        columns = [group.group.removesuffix(f" {profile.name}") for group in fitted.held_out]
        shipped = [
            getattr(getattr(profile, part), field)
            for part, _, field in (name.partition(".") for name in fitted.parameters)
        ]
        yield ""
        yield f"| {profile.name} | start | without {' | without '.join(columns)} | shipped |"
        yield "|---|---:|" + "---:|" * len(columns) + "---:|"
        for i, name in enumerate(fitted.parameters):
            folds = " | ".join(f"{group.values[i]:.3g}" for group in fitted.held_out)
            start = f"{fitted.starts[i]:.3g} ± {fitted.spreads[i]:.2g}"
            yield f"| `{name}` | {start} | {folds} | {shipped[i]:.3g} |"
    yield ""


def _limits(judged: Judged, profiles: list[Backend], data: Path) -> Iterator[str]:
    missing = sum(np.isnan(s.ttft_s) for s in judged.simulated)
    shared = judged.having("input_tokens", 4000).having("output_tokens", 1000)
    small = judged.having("model", "llama-3.1-8b").having("backend", "trtllm")
    seated = _with_one_seat_less(small, profiles, data)
    yield "## What this does not say"
    yield ""
    yield f"* {missing} rows did not fit the described device and have no error."
    yield f"* The {len(shared.rows)} rows of 4,000/1,000 are off by {_bias(shared)}. Their clients"
    yield "  are in proportion to a whole node's replicas, which the data do not state: they are"
    yield "  simulated as they stand, on one replica."
    yield f"* Llama-3.1-8B on TensorRT-LLM is off by {_bias(small)}. With few clients, a request"
    yield "  there waited about a whole request's time over the number of clients, as if the server"
    yield "  had one seat less than clients. No documented setting or defect that does so was"
    yield "  found, so it is not modelled; with one seat less these rows would be off by"
    yield f"  {_bias(seated)}. Three of its runs waited so for none (2,048/256 with 8 clients at"
    yield "  TP 1 and 8, 1,024/256 with 16 at TP 8): a state of a server, not how the system is."
    yield "* Tokens of that group reached clients at about 9,300 a second at most. How long the"
    yield "  server's process takes for one is modelled, but hardly any other group says how long:"
    yield "  without its own rows that time stays near its start."
    yield "* KV caches are taken as bfloat16, but in fp8 where TensorRT-LLM serves an fp8 model:"
    yield "  a publisher's checkpoint asks for that, and 64 clients of Qwen3-32B on one H100"
    yield "  would not have had room otherwise. vLLM does so only when told to; nobody wrote down"
    yield "  whether it was. Rows without a precision are taken as bf16. The data hold means"
    yield "  only, no percentiles."
    yield "* These runs cannot tell the host's parts (scheduling, input, sampling, output) apart;"
    yield "  the profiles divide their sum as the 2023 engine did."


def _mended(judged: Judged) -> Iterator[str]:
    yield ""
    yield "## What was mended"
    yield ""
    yield "Held out, as earlier versions of this report had it, and now:\n"
    yield "| | TTFT median | bias by concurrency | bias by TP | TPOT median | coverage of TTFT |"
    yield "|---|---:|---:|---:|---:|---:|"
    yield "| at first | 15.1% | -14.6 to +2.6% | -9.7 to -2.2% | 6.5% | 73% |"
    yield "| before, runs too short | 10.8% | -22.9 to +1.3% | -9.0 to -2.1% | 4.5% | 76% |"
    yield "| runs as long as they were | 14.8% | -40.2 to -0.4% | -18.0 to -9.5% | 4.4% | |"
    yield "| the same, refitted | 13.8% | -36.5 to +0.9% | -17.7 to -6.5% | 4.8% | 72% |"
    yield _now(judged)
    yield ""
    yield "* **One process takes requests in and sends tokens out.** TensorRT-LLM's server has"
    yield "  one event loop for both (NVIDIA/TensorRT-LLM, pull requests 15690, 16523). Requests"
    yield "  that come while tokens wait are now taken in together, and their prompts queue. They"
    yield "  were let in at once. This adds no parameter."
    yield "* **Its work on answers is not the scheduler's.** Host times of the 2023 engine, from"
    yield "  which a fit starts, hold output; here the sending process does that, so it counted"
    yield "  twice. Without it, large decodes are quicker, and tokens come faster than they leave."
    yield "* Mean |log error| of TTFT held out, before: 0.61 (8B), 0.18 (Qwen3-32B), 0.089 (70B);"
    yield "  with requests that wait: 0.56, 0.15, 0.085; refitted without output: 0.51, 0.15,"
    yield "  0.087. TPOT: 0.092 to 0.068, 0.062 to 0.058, 0.066 to 0.066."
    yield "* **Not taken: a slower process.** Searched along its range, all else as fitted, a token"
    yield "  takes 65 to 95 us without the 8B (the fit's measure says no more), 85 us without any"
    yield "  other group and on all. The fit is linear about 65 us and finds 64 to 70. With 90 us"
    yield "  the 8B's 128 clients, held out, are off by -0.36 in the log, not -0.80."
    yield "* Before: block-scaled products by DeepGEMM's law (Qwen3-32B's decodes were 10 % too"
    yield "  slow); keys and values in fp8 for fp8 models on TensorRT-LLM; prompts that wait for"
    yield "  others (`batch_wait_timeout_iters`, `batch_wait_max_tokens_ratio`); the second round,"
    yield "  which still waits behind the first burst; all rounds of drawn lengths; no pass that"
    yield "  rounds activations where vLLM's checkpoint holds the scales; one process that sends"
    yield "  tokens; work that overlap does not hide; prompts start kernel by kernel."
    yield ""
    yield "All were found by looking at these rows. What they cost is taken from elsewhere where"
    yield "anything else says it, and fitted without the judged group."


def _now(judged: Judged) -> str:
    """The same figures of ``judged``; coverage has a section of its own."""
    middle = np.nanmedian(np.abs(judged.errors), axis=0)
    spans = [
        [np.nanmedian(judged.having(name, value).errors[:, 0]) for value in values]
        for name, values in (("concurrency", COMMON_CLIENTS), ("tp", (1, 2, 4, 8)))
    ]
    clients, tp = (f"{min(span):+.1%} to {max(span):+.1%}" for span in spans)
    return f"| now | {middle[0]:.1%} | {clients} | {tp} | {middle[1]:.1%} | its section |"


def _bias(judged: Judged) -> str:
    ttft, tpot = np.nanmedian(judged.errors, axis=0)
    return f"{ttft:+.0%} (TTFT) and {tpot:+.0%} (TPOT)"


def _with_one_seat_less(small: Judged, profiles: list[Backend], data: Path) -> Judged:
    """The same rows on servers that seat one sequence less than there are clients."""
    seated = [_Seated(**{f.name: getattr(row, f.name) for f in fields(row)}) for row in small.rows]
    again = judge(list(seated), profiles, data, processes=1)
    return Judged(rows=small.rows, simulated=_in_order(again, seated))


@dataclass(frozen=True, kw_only=True)
class _Seated(ServedRow):
    @property
    def caps(self) -> Caps:
        return replace(super().caps, max_num_seqs=self.concurrency - 1)


def _in_order(judged: Judged, rows: list[_Seated]) -> tuple[Simulated, ...]:
    found = dict(zip(judged.rows, judged.simulated, strict=True))
    return tuple(found[row] for row in rows)


def _line(name: str, judged: Judged) -> str:
    return f"| {name} | {len(judged.rows)} | {judged.cells} |"


def _fitted(profile: Backend) -> Fitted:
    assert profile.fitted is not None, f"{profile.name} is a fitted profile"
    return profile.fitted


if __name__ == "__main__":
    sys.exit(main())
