"""The ``gearshift`` command line. Commands are imported when called, so ``--help`` is quick."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Callable
from functools import cache, wraps
from importlib import import_module
from io import TextIOWrapper
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from api.cli.commands import COMMANDS, GROUPS, OTHER_NAMES, SECTIONS, CommandRef
from api.cli.common import domain_errors, end, fail, log
from api.cli.environment import warn_about_variables
from api.cli.examples import EXAMPLES, epilog
from api.cli.exit_codes import EPILOG, ExitCode
from engine.spec.names import did_you_mean

# The \b keeps typer from rewrapping these lines.
BEGIN = f"""\b
To begin with a model of yours:
gearshift up {EXAMPLES["up"].replace("./model", "DIR")}
Every command's --help has an example.

"""
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
    for name, text in GROUPS.items():
        app.add_typer(_group(text), name=name)
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


class _Stub(TyperCommand):
    """Stands for a command until it is called; takes whatever comes and hands it on."""

    def __init__(self, name: str, ref: CommandRef) -> None:
        super().__init__(
            name,
            help=ref.help,
            add_help_option=False,
            context_settings=PASS_EVERYTHING,
            rich_markup_mode=None,
        )
        self.ref = ref

    def invoke(self, ctx: Any) -> None:
        _run(self.ref, ctx)


class _Group(TyperGroup):
    """A group of stubs, which give way to the real commands where the shell asks for completions;
    it says in one line which command was meant."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # Made here: of functions typer would look at the words of seventy to call one.
        stubs = {
            name: _Stub(name, ref)
            for ref in COMMANDS
            for group, _, name in [ref.path.rpartition(" ")]
            if group == self.name
        }
        self.commands = {**stubs, **self.commands}

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        word = args[0]
        is_wrong = not word.startswith("-") and self.get_command(ctx, word) is None
        if is_wrong and not ctx.resilient_parsing:
            way_out = f"see {ctx.command_path} --help"
            fail(f"no command {word!r}{self._meant(word)}; {way_out}")
        name, stub, rest = super().resolve_command(ctx, args)
        ref = getattr(stub, "ref", None)
        if not ctx.resilient_parsing or ref is None:
            return name, stub, rest
        return name, typer.main.get_command(_load(ref)), rest

    def _meant(self, word: str) -> str:
        """Which command a word that is none stands for, as far as that can be told."""
        return did_you_mean(word, self.commands)


class _Root(_Group):
    """The program itself: its commands by what one wants."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 - click calls it
        width = max(map(len, self.commands))
        for title, names in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl(
                    [(f"{name:{width}}", self.commands[name].help or "") for name in names]
                )

    def _meant(self, word: str) -> str:
        other = OTHER_NAMES.get(word.lower())
        return super()._meant(word) if other is None else f" (did you mean {other!r}?)"


def _group(text: str, *, is_root: bool = False) -> typer.Typer:
    return typer.Typer(
        cls=_Root if is_root else _Group,
        help=text,
        epilog=BEGIN + EPILOG if is_root else EPILOG,
        no_args_is_help=True,
        rich_markup_mode=None,
        add_completion=is_root,
        pretty_exceptions_show_locals=False,
    )


def _run(ref: CommandRef, ctx: typer.Context) -> None:
    """Import the command and run it with the stub's arguments."""
    with domain_errors():
        _check_words(ctx.args)
        command = _built(ref)
        words = _words(ref, ctx.args)
        try:
            code: Any = command.main(words, prog_name=ctx.command_path, standalone_mode=False)
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


@cache
def _built(ref: CommandRef) -> Any:
    """The real command as it is called, which is made of its words once."""
    return typer.main.get_command(_load(ref))


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
