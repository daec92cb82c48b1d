"""The ``gearshift`` command line. Commands are imported when called, so ``--help`` is quick."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from importlib import import_module
from io import TextIOWrapper
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from api.cli.common import domain_errors, end, fail, log
from api.cli.environment import warn_about_variables
from api.cli.examples import epilog
from api.cli.exit_codes import EPILOG, ExitCode
from engine.spec.names import did_you_mean


@dataclass(frozen=True, kw_only=True)
class CommandRef:
    """Where a command lives: ``function`` of ``api.cli.<module>``, shown under ``path``.

    ``words``: another function there, which makes the command's words of those typed.
    """

    path: str
    module: str
    function: str
    help: str
    words: str = ""


GROUPS = {
    "model": "Make checkpoints.",
    "engine": "Run engines.",
    "engines": "Observe vLLM and SGLang servers, and say what they should run.",
    "workload": "Look at workloads, write them as traces, upload traces.",
    "backends": "Look at serving systems as they are simulated.",
    "rollouts": "Prove policies on a running engine before they spread.",
    "audit": "Look after the audit trail.",
    "keys": "Make, list, rotate and revoke API keys of the service.",
    "db": "Look after the database.",
}
COMMANDS = (
    CommandRef(
        path="model create",
        module="model",
        function="create",
        help="Write a random checkpoint in Hugging Face format.",
    ),
    CommandRef(
        path="generate",
        module="generate",
        function="generate",
        help="Continue one prompt under a parallel plan.",
    ),
    CommandRef(
        path="engine serve",
        module="engine_serve",
        function="serve",
        words="known_words",
        help="Serve a model with an OpenAI-compatible API.",
    ),
    CommandRef(
        path="engines observe",
        module="engines",
        function="observe",
        help="Have the control plane look at a vLLM or SGLang server.",
    ),
    CommandRef(
        path="engines show",
        module="engines",
        function="show",
        help="Say what is seen of an observed server.",
    ),
    CommandRef(
        path="engines bind",
        module="engines",
        function="bind",
        help="Hold an engine to a capacity table.",
    ),
    CommandRef(
        path="engines advise",
        module="engines",
        function="advise",
        help="Say what an observed server should run, and how to start it.",
    ),
    CommandRef(
        path="engines forget",
        module="engines",
        function="forget",
        help="Observe a server no more.",
    ),
    CommandRef(
        path="workload sample",
        module="workload",
        function="sample",
        help="Write a workload as a trace, for whoever has none.",
    ),
    CommandRef(
        path="workload show",
        module="workload",
        function="show",
        help="Say what a workload is: requests, rates, lengths, cuts.",
    ),
    CommandRef(
        path="workload upload",
        module="workload_service",
        function="upload",
        help="Upload a trace to the control plane.",
    ),
    CommandRef(
        path="workload list",
        module="workload_service",
        function="list_uploaded",
        help="List the traces that the control plane has.",
    ),
    CommandRef(
        path="workload delete",
        module="workload_service",
        function="delete",
        help="Remove a trace from the control plane.",
    ),
    CommandRef(
        path="bench",
        module="bench",
        function="bench",
        help="Replay a workload against a server and judge it by an SLA.",
    ),
    CommandRef(
        path="import",
        module="import_runs",
        function="import_runs",
        help="Read result files of vllm bench serve, GuideLLM and AIPerf as measurements.",
    ),
    CommandRef(
        path="profile",
        module="profile",
        function="profile",
        help="Measure this machine's operators.",
    ),
    CommandRef(
        path="simulate",
        module="simulate",
        function="simulate",
        help="Predict a plan's latencies on a workload.",
    ),
    CommandRef(
        path="capacity",
        module="capacity",
        function="capacity",
        help="Find the highest load that a plan carries within an SLA.",
    ),
    CommandRef(
        path="compare",
        module="compare",
        function="compare",
        help="Compare static plans, Shift and an oracle on one load.",
    ),
    CommandRef(
        path="report",
        module="report",
        function="report",
        help="Write an answer as a report to read: Markdown, HTML or JSON.",
    ),
    CommandRef(
        path="plan",
        module="plan",
        function="plan",
        help="Find the plans that meet an SLA on described hardware.",
    ),
    CommandRef(
        path="tune",
        module="tune",
        function="tune",
        help="Search the plan, threshold and caps that meet an SLA.",
    ),
    CommandRef(
        path="list",
        module="catalog",
        function="list_names",
        help="List models, hardware, backends and links to name.",
    ),
    CommandRef(
        path="devices",
        module="devices",
        function="devices",
        help="Show this machine's devices, their links, power and clocks.",
    ),
    CommandRef(
        path="doctor",
        module="doctor",
        function="doctor",
        help="Say what this machine has, what is missing, and how to get it.",
    ),
    CommandRef(
        path="backends show",
        module="backends",
        function="show",
        help="List every setting of a serving system, and where it is from.",
    ),
    CommandRef(
        path="apply",
        module="apply",
        function="apply",
        help="Apply what plan or tune recommends to a running engine.",
    ),
    CommandRef(
        path="export",
        module="export",
        function="export",
        help="Write the command that starts an answer on a serving system.",
    ),
    CommandRef(path="serve", module="serve", function="serve", help="Run the control plane."),
    CommandRef(
        path="up",
        module="up",
        function="up",
        help="Tune a model for an SLA and serve it, with its control plane.",
    ),
    CommandRef(
        path="rollouts start",
        module="rollouts",
        function="start",
        help="Prove a policy on a running engine, and let it spread.",
    ),
    CommandRef(
        path="rollouts list",
        module="rollouts",
        function="list_rollouts",
        help="List rollouts.",
    ),
    CommandRef(
        path="rollouts show",
        module="rollouts",
        function="show",
        help="Say how a rollout stands, and why.",
    ),
    CommandRef(
        path="rollouts cancel",
        module="rollouts",
        function="cancel",
        help="End a rollout, and go back to what ran before.",
    ),
    CommandRef(
        path="audit verify",
        module="audit",
        function="verify",
        help="Say whether the audit chain is whole.",
    ),
    CommandRef(
        path="keys create",
        module="keys",
        function="create",
        help="Make an API key, and show it once.",
    ),
    CommandRef(path="keys list", module="keys", function="list_keys", help="List API keys."),
    CommandRef(
        path="keys rotate",
        module="keys",
        function="rotate",
        help="Make a key in place of another, and show it once.",
    ),
    CommandRef(path="keys revoke", module="keys", function="revoke", help="Revoke an API key."),
    CommandRef(
        path="db upgrade",
        module="db",
        function="upgrade",
        help="Bring the database to the newest schema.",
    ),
    CommandRef(
        path="db check",
        module="db",
        function="check",
        help="Say whether the database has the newest schema.",
    ),
    CommandRef(
        path="demo",
        module="demo",
        function="demo",
        help="Show the whole loop: checkpoint, tuning, serving, control.",
    ),
)
# The stub takes whatever comes, --help included, and hands it to the real command.
PASS_EVERYTHING = {
    "ignore_unknown_options": True,
    "allow_extra_args": True,
    "allow_interspersed_args": False,
}


def create_app() -> typer.Typer:
    """The typer application with every command as a stub that loads the real one."""
    app = _group("SLA-aware parallelism for LLM inference: serve, tune, control.", is_root=True)
    app.callback()(_root)
    groups = {name: _group(text) for name, text in GROUPS.items()}
    for name, group in groups.items():
        app.add_typer(group, name=name)
    for ref in COMMANDS:
        parent, _, name = ref.path.rpartition(" ")
        _register(groups[parent] if parent else app, name, ref)
    return app


def main() -> None:
    """Entry point of the ``gearshift`` script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # an answer is told in any terminal's letters
            stream.reconfigure(errors="backslashreplace")
    try:
        create_app()()
    except (SystemExit, KeyboardInterrupt) as leaving:  # typer makes an exit of what it sees
        if isinstance(leaving, SystemExit) and leaving.code != ExitCode.INTERRUPTED:
            raise
        _end_interrupted()


def _end_interrupted() -> NoReturn:
    # Whoever interrupts the end as well shall not see where.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Python forgets only so that an interruption once passed through code that was made of text
    # (a dataclass's), for which it would end by a signal instead.
    # The text is empty.
    exec("")  # nosec B102
    log("interrupted")
    end(ExitCode.INTERRUPTED)


class _Group(TyperGroup):
    """A group whose stubs give way to the real commands where the shell asks for completions."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, stub, rest = super().resolve_command(ctx, args)
        ref = getattr(getattr(stub, "callback", None), "ref", None)
        if not ctx.resilient_parsing or ref is None:
            return name, stub, rest
        return name, typer.main.get_command(_load(ref)), rest


def _group(text: str, *, is_root: bool = False) -> typer.Typer:
    return typer.Typer(
        cls=_Group,
        help=text,
        epilog=EPILOG,
        no_args_is_help=True,
        rich_markup_mode=None,
        add_completion=is_root,
        pretty_exceptions_show_locals=False,
    )


def _register(parent: typer.Typer, name: str, ref: CommandRef) -> None:
    def run(ctx: typer.Context) -> None:
        _run(ref, ctx)

    # What the group needs to load it for completions; typer hands on a function and nothing else.
    run.ref = ref  # type: ignore[attr-defined]
    parent.command(
        name=name, help=ref.help, add_help_option=False, context_settings=PASS_EVERYTHING
    )(run)


def _run(ref: CommandRef, ctx: typer.Context) -> None:
    """Import the command and run it with the stub's arguments."""
    with domain_errors():
        _check_words(ctx.args)
        command = _load(ref)
        words = _words(ref, ctx.args)
        try:
            code: Any = command(args=words, prog_name=ctx.command_path, standalone_mode=False)
        except typer.TyperException as error:
            if not hasattr(error, "format_message"):  # an exit, not a mistake
                raise
            fail(f"{_mistake(error)}; see {ctx.command_path} --help")
        except typer.Abort as error:  # a question that was not answered
            raise typer.Exit(ExitCode.INTERRUPTED) from error
    if isinstance(code, int) and code:
        raise typer.Exit(code)


def _mistake(error: Any) -> str:
    """What typer says of the words typed, with the right one that they are nearest to."""
    text: str = error.format_message().rstrip(".").replace("Value error, ", "")
    if hasattr(error, "possibilities") and error.ctx is not None:  # there is no such option
        options = error.ctx.command.params
        known = [word for option in options for word in (*option.opts, *option.secondary_opts)]
        return f"No such option: {error.option_name}{did_you_mean(error.option_name, known)}"
    if (found := re.search(r"'([^']*)' is not one of (.+)", text)) is not None:
        return text + did_you_mean(found[1], re.findall(r"'([^']+)'", found[2]))
    return text


def _load(ref: CommandRef) -> typer.Typer:
    """The real command, alone in an application of its own."""
    function = getattr(import_module(f"api.cli.{ref.module}"), ref.function)
    command = typer.Typer(add_completion=False, rich_markup_mode=None)
    text = ref.help if not function.__doc__ else None
    command.command(help=text, epilog=epilog(ref.path))(_with_logs(function))
    return command


def _words(ref: CommandRef, typed: list[str]) -> list[str]:
    """What the command is called with."""
    if not ref.words:
        return typed
    make: Callable[[list[str]], list[str]] = getattr(
        import_module(f"api.cli.{ref.module}"), ref.words
    )
    return make(typed)


def _check_words(words: list[str]) -> None:
    """End on bytes that are no text: neither a JSON answer nor a database could hold them."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            fail(f"{word!r} is not UTF-8 text")


def _with_logs(function: Callable[..., None]) -> Callable[..., None]:
    """The command, beginning with what its help is quicker without."""

    @wraps(function)
    def run(**options: Any) -> None:
        from engine.logs import configure_logs

        configure_logs("info")
        warn_about_variables()
        function(**options)

    return run


def _print_version(is_asked: bool) -> None:
    if is_asked:
        from importlib.metadata import version

        typer.echo(version("gearshift"))
        raise typer.Exit


def _root(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """SLA-aware parallelism for LLM inference: serve, tune, control."""


if __name__ == "__main__":
    main()
