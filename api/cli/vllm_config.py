"""``--config FILE``: options of a command as ``vllm serve --config`` writes them, in YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from api.cli.common import fail
from api.cli.given import CONFIG, set_defaults
from api.cli.vllm_flags import check_flag, is_foreign
from engine.spec.names import did_you_mean

# Options that a config file may not set: they are not options of the server.
OWN_OPTIONS = ("config", "from", "choice", "help")


def read_config(ctx: typer.Context, file: Path | None) -> Path | None:
    """Make the file's values the defaults of the command's options: the command line wins.

    Ends on a file that cannot be read, and on a key that is no option, with its name.
    """
    if file is not None:
        document = _document(file)
        options = _options(ctx)
        defaults: dict[str, Any] = {}
        for key, value in document.items():
            defaults |= _default(file, str(key), value, options)
        set_defaults(ctx, CONFIG, defaults)
    return file


def _document(file: Path) -> dict[Any, Any]:
    try:
        found = msgspec.yaml.decode(file.read_bytes())
    except OSError as error:
        fail(f"--config {file}: {error.strerror}")
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        fail(f"--config {file}: no YAML: {error}")
    if not isinstance(found, dict):
        fail(f"--config {file}: must be keys and values, as in 'tensor-parallel-size: 2'")
    return found


def _options(ctx: typer.Context) -> dict[str, tuple[str, bool]]:
    """Every option's name without dashes: the parameter behind it, and what it says of a flag."""
    found: dict[str, tuple[str, bool]] = {}
    for parameter in ctx.command.params:
        assert parameter.name is not None, "every parameter has a name"
        for words, is_on in ((parameter.opts, True), (parameter.secondary_opts, False)):
            found |= {word.lstrip("-").replace("_", "-"): (parameter.name, is_on) for word in words}
    return {name: option for name, option in found.items() if name not in OWN_OPTIONS}


def _default(
    file: Path, key: str, value: Any, options: dict[str, tuple[str, bool]]
) -> dict[str, Any]:
    """The one default that a key stands for; none where it asks for what is so in any case."""
    name = key.replace("_", "-")
    if isinstance(value, list) and len(value) == 1:
        (value,) = value
    if is_foreign(f"--{name}"):
        if value is not False:
            check_flag(f"--{name}", None if value is True else str(value))
        return {}
    if name not in options:
        fail(f"--config {file}: unknown key {key!r}{did_you_mean(name, options)}")
    if isinstance(value, (list, dict)) or value is None:
        fail(f"--config {file}: {key}: must be one value, not {value!r}")
    parameter, is_on = options[name]
    if isinstance(value, bool):
        return {parameter: value is is_on}
    return {parameter: str(value)}


ConfigOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        is_eager=True,
        callback=read_config,
        help="Options from a YAML file, as of vllm serve --config; the command line wins.",
    ),
]
