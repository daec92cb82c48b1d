"""``gearshift profile --url`` and ``--engine``: a server's step times, seen from outside."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.cli.common import fail, print_json, print_lines
from api.cli.engine_options import MOST_SEQS, MOST_TOKENS
from api.cli.groups import writing
from api.cli.key_options import ServerKey
from policies.numbers import short

if TYPE_CHECKING:
    from engine.spec.plan import ParallelPlan
    from engine.spec.settings import Caps
    from tuner.described.server_profile import ProfiledPlan, ServerProfile
    from tuner.servers.command import ServerCommand
    from tuner.servers.profile import OnEvent, ServerProfileSpec

VLLM, OWN = "vllm", "gearshift"
DEFAULT_PLAN = "tp=1"
# An error above this is worth a warning; quiet servers have less than a tenth.
MUCH = 0.25


@dataclass(frozen=True, kw_only=True)
class ProfiledServer:
    """A server to look at from outside, instead of this machine."""

    url: Annotated[
        str | None,
        typer.Option(help="Profile the server that runs there, from outside, instead."),
    ] = None
    engine: Annotated[
        str | None,
        typer.Option(
            help="What serves: vllm, sglang or gearshift; beside --url where it does not say so "
            "itself. Without --url vllm or sglang is started for each --plan, and ended.",
        ),
    ] = None
    engine_command: Annotated[
        str | None,
        typer.Option(
            metavar="COMMAND",
            help="What starts it, as for tune; model, port, plan and caps are added.",
        ),
    ] = None
    plan: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PLAN",
            help="Of the server, tp=1 by default; may be repeated where it is started.",
        ),
    ] = None
    max_num_seqs: Annotated[
        int | None, typer.Option(min=1, max=MOST_SEQS, help="Of the server; by default its own.")
    ] = None
    max_num_batched_tokens: Annotated[
        int | None, typer.Option(min=1, max=MOST_TOKENS, help="Of the server; by default its own.")
    ] = None
    start_timeout_s: Annotated[
        float | None,
        typer.Option(
            min=1,
            max=86_400,
            help="A server that does not answer by then has failed; by default 900.",
        ),
    ] = None
    access: ServerKey

    @property
    def is_asked(self) -> bool:
        """Whether a server is meant at all; ends where words are left without one."""
        if self.url is not None or self.engine is not None:
            return True
        words = {
            "--engine-command": self.engine_command,
            "--plan": self.plan,
            "--max-num-seqs": self.max_num_seqs,
            "--max-num-batched-tokens": self.max_num_batched_tokens,
            "--start-timeout-s": self.start_timeout_s,
            "--api-key-file": self.access.api_key_file,
        }
        if named := [word for word, value in words.items() if value is not None]:
            fail(f"{', '.join(named)}: of a server; name its kind with --engine, or its --url")
        return False

    def profile(
        self, model: Path | None, *, dtype: str, device: str, seconds: float, say: OnEvent
    ) -> ServerProfile:
        """The profile over every plan named, one after the other.

        Raises:
            TunerError, LoadError, ServerError: a server that cannot be profiled, or no such one.
        """
        from engine.spec.plan import parse_plan
        from tuner.described.parse import read_rank_dtype
        from tuner.servers.profile import ServerProfileSpec, joined, profile_server
        from tuner.work.models import load_model

        if model is None:
            fail("--model is missing: what the server serves, its folder or (with --url) its name")
        shape = load_model(str(model))
        number_format = read_rank_dtype(dtype, shape)
        plans = [parse_plan(text).plan for text in self.plan or [DEFAULT_PLAN]]
        if len(set(plans)) < len(plans):
            fail("--plan names one plan twice")
        self._check_url(plans)
        system = self.engine or self._told_system()
        asked = [
            ServerProfileSpec(
                url=self.url or "",
                system=system,
                model=shape,
                dtype=number_format,
                plan=plan,
                caps=self._caps(system, plan, device),
                seconds=seconds,
                api_key=self.access.key,
            )
            for plan in plans
        ]
        if self.url is None:
            return joined(list(self._started(model, asked, say)))
        return profile_server(asked[0], on_event=say)

    def _check_url(self, plans: list[ParallelPlan]) -> None:
        if self.url is None:
            return
        if self.engine_command is not None:
            fail("--engine-command starts a server, and --url names one that runs: leave one out")
        if len(plans) > 1:
            fail("--url: a server that runs has one plan; name that one")

    def _told_system(self) -> str:
        """What serves at the URL, by its own word; ends where it says nothing that is known."""
        from tuner.load.served_model import SAYING_SYSTEMS, get_served_model

        assert self.url is not None, "without a URL, --engine is what made it a server"
        served = get_served_model(self.url, api_key=self.access.key)
        if served.system is None:
            says = f"says {served.owner!r}" if served.owner else "does not say"
            fail(
                f"--url: that server {says}; name what serves: --engine "
                f"{', '.join(SAYING_SYSTEMS[:-1])} or {SAYING_SYSTEMS[-1]}"
            )
        return served.system

    def _caps(self, system: str, plan: ParallelPlan, device: str) -> Caps:
        """Those named, else what such a server has where nobody names any."""
        from tuner.answers.asked import NamedCaps
        from tuner.backends import load_profile
        from tuner.servers.command import cpu_caps

        usual = load_profile(system).default_caps
        if system == VLLM and device == "cpu":
            usual = cpu_caps(plan.pp * plan.tp)
        named = NamedCaps(
            max_num_seqs=self.max_num_seqs, max_num_batched_tokens=self.max_num_batched_tokens
        )
        return named.over(usual)

    def _started(
        self, model: Path, asked: list[ServerProfileSpec], say: OnEvent
    ) -> Iterator[ServerProfile]:
        from tuner.servers.command import DEFAULT_START_TIMEOUT_S
        from tuner.servers.profile import profile_started

        command = self._command(model, asked[0])
        limit_s = self.start_timeout_s or DEFAULT_START_TIMEOUT_S
        for each in asked:
            say(f"starting {command.system} with {each.plan}")
            yield profile_started(each, command, start_timeout_s=limit_s, on_event=say)

    def _command(self, model: Path, asked: ServerProfileSpec) -> ServerCommand:
        from tuner.hardware import Precision
        from tuner.servers.command import ServerCommand, read_system

        if self.engine == OWN:
            fail(
                "--engine gearshift: without it this engine is profiled from inside, which tells "
                "more; with --url it is seen from outside"
            )
        command = ServerCommand(
            system=read_system(asked.system),
            model=str(model),
            precision=Precision.of(asked.dtype),
            prefix=self.engine_command,
        )
        command.require_program()
        return command


def write_profile(found: ServerProfile, out: Path, *, as_json: bool) -> None:
    """Keep it, and tell what was seen, how sure it is, and what it does not say."""
    document = found.to_json()
    with writing():
        out.write_text(json.dumps(document, indent=1) + "\n")
    if as_json:
        print_json({"profile": str(out), **told_json(found)})
        return
    from rich.console import Console

    console = Console(soft_wrap=True, highlight=False, markup=False)
    for known in found.plans:
        _print_plan(console, known)
    release = found.release or "of a release it does not tell"
    lines = [f"{found.system} {release}: steps may be off by {_percent(found.interval)} (90 %)"]
    if found.interval > MUCH:
        lines.append(
            "that is much: profile again, for longer (--seconds), while nothing else loads the "
            "server or its machine"
        )
    lines += [f"not measured: {line}" for line in found.not_measured]
    lines.append(f"profile {out}: name it as --hardware {out} to simulate, capacity and plan")
    print_lines(lines)


def told_json(found: ServerProfile) -> dict[str, Any]:
    """What a program wants to know of a profile, without the points it was made of."""
    return {
        "system": found.system,
        "release": found.release,
        "interval": found.interval,
        "not_measured": list(found.not_measured),
        "plans": [
            {
                "plan": known.plan,
                "step_interval": known.step_interval,
                "took_s": known.took_s,
                "check": known.check,
                "checked": [
                    {"metric": c.metric, "measured": c.measured, "simulated": c.simulated}
                    for c in known.checked
                ],
            }
            for known in found.plans
        ],
    }


def _print_plan(console: Any, known: ProfiledPlan) -> None:
    from rich.table import Table

    table = Table("steps of", "seen, ms", "spread", "looks", "fitted without it")
    table.title = f"{known.plan}, caps {known.caps.max_num_seqs} sequences and "
    table.title += f"{known.caps.max_num_batched_tokens} tokens"
    for seen, error in zip(known.seen, known.errors, strict=True):
        off = f"{_signed(-error)} %"
        table.add_row(
            seen.name, short(1e3 * seen.seconds), f"{seen.spread:.0%}", str(seen.repeats), off
        )
    console.print(table, soft_wrap=False)
    console.print(f"a load that no fit saw, {known.check}:")
    checks = Table("metric", "measured", "simulated", "off")
    for check in known.checked:
        values = (short(check.measured), short(check.simulated))
        checks.add_row(check.metric, *values, f"{_signed(-check.log_error)} %")
    console.print(checks, soft_wrap=False)
    front = known.front_end
    console.print(
        f"outside of steps: {short(1e3 * front.request_s)} ms a request, "
        f"{short(1e6 * front.prompt_token_s)} us a prompt token; took {known.took_s:.0f} s"
    )


def _signed(log_ratio: float) -> str:
    from math import expm1

    return f"{100 * expm1(log_ratio):+.0f}"


def _percent(log_ratio: float) -> str:
    from tuner.described.node import percent

    return percent(log_ratio)
