"""Pages of the site that are made from the code when it is built: commands, REST, Python, settings.

``docs/site_hooks.py`` adds them; none of them is kept. A page is Markdown by its path.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

Json = dict[str, Any]
METHODS = ("get", "put", "post", "patch", "delete")
REDOC = "reference/redoc.standalone.js"
# What extensions implement, beside what ``import gearshift`` has.
PROTOCOLS = (
    "tuner.workload.traces.TraceReader",
    "policies.forecasters.Forecaster",
    "tuner.load.tuning_target.TuningTarget",
    "tuner.load.tuning_target.TargetAsked",
    "engine.executors.protocol.Executor",
    "engine.executors.protocol.ExecutorInfo",
)


def reference_pages() -> dict[str, str]:
    """Every page, by its path in the site's sources."""
    return {
        "reference/command-line.md": _command_line(),
        "reference/python.md": _python(),
        "reference/settings.md": _settings(),
        **_rest("control-plane", _control_plane()),
        **_rest("engine-server", _engine_server()),
    }


def redoc_file() -> Path:
    """What draws the whole descriptions in a browser, from an installed package."""
    from engine.server.pages import ASSETS_DIR

    return ASSETS_DIR / "redoc.standalone.js"


def _command_line() -> str:
    from api.cli.commands import COMMANDS
    from api.cli.exit_codes import ExitCode

    parts = [
        "# Commands and their options\n\nMade from the commands themselves; `gearshift COMMAND "
        "--help` says the same. What they are for is in [the command line](../command-line.md).",
        "| exit code | meaning |\n|---|---|\n"
        + "\n".join(f"| {code.value} | {code.meaning} |" for code in ExitCode),
    ]
    parts += map(_command, sorted(COMMANDS, key=lambda ref: ref.path))
    return "\n\n".join(parts)


def _command(ref: Any) -> str:
    import typer

    from api.cli import main
    from api.cli.examples import EXAMPLES

    command: Any = typer.main.get_command(main._load(ref))
    context = typer.Context(command)
    records = [each.get_help_record(context) for each in command.params if each.name != "help"]
    rows = [f"| `{words}` | {_cell(about)} |" for words, about in filter(None, records)]
    example = f"    gearshift {ref.path} {EXAMPLES[ref.path]}" if ref.path in EXAMPLES else ""
    table = "| option | what it is |\n|---|---|\n" + "\n".join(rows)
    return "\n\n".join([f"## gearshift {ref.path}", command.help or ref.help, example, table])


def _python() -> str:
    import gearshift

    homes = [f"{home}.{name}" for home, names in gearshift._HOMES.items() for name in names]
    blocks = [
        _documented(name) for name in sorted(homes, key=lambda n: n.rpartition(".")[2].lower())
    ]
    protocols = [_documented(name) for name in PROTOCOLS]
    return "\n\n".join(
        [
            "# Python, name by name\n\nMade from the docstrings. What belongs together is told in "
            "[the Python interface](../python.md).",
            "## What `import gearshift` has",
            *blocks,
            "## What extensions implement\n\nEach has a page under *Extend it*.",
            *protocols,
        ]
    )


def _documented(name: str) -> str:
    return f"::: {name}\n    options:\n      heading_level: 3"


def _settings() -> str:
    from api.web.settings import PREFIX, ServiceSettings

    rows = [
        f"| `{PREFIX}{name.upper()}` | {_cell(field.description or '')} | {_fallback(field)} |"
        for name, field in ServiceSettings.model_fields.items()
    ]
    return (
        "# Settings of the control plane\n\nMade from the settings themselves. Each is a variable "
        "of the environment of `gearshift serve`; `gearshift up` and workers read them, too. "
        "Bounds on clients are explained in [limits of servers](../limits.md).\n\n"
        "| variable | what it is | default |\n|---|---|---|\n" + "\n".join(rows)
    )


def _fallback(field: Any) -> str:
    value = field.default
    if field.is_required() or value is None or field.default_factory is not None:
        return ""
    return f"`{value}`"


def _control_plane() -> Json:
    from api.app import create_app
    from api.web.settings import ServiceSettings

    with TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/none.db"
        app = create_app(ServiceSettings(database_url=url, data_dir=Path(folder), dashboard=False))
        return app.openapi()


def _engine_server() -> Json:
    from engine.engine import Engine
    from engine.models.create import create_model
    from engine.server.app import create_server
    from engine.spec.config import EngineConfig, ExecutorKind
    from engine.text.tokenizer import Tokenizer

    with TemporaryDirectory() as name:
        folder = Path(name) / "model"
        create_model(folder, preset="tiny", seed=0)
        engine = Engine(EngineConfig(model_dir=folder, executor=ExecutorKind.SIMULATED))
        return create_server(engine, Tokenizer.from_dir(folder), model_name="model").openapi()


def _rest(name: str, document: Json) -> dict[str, str]:
    """The operations as Markdown, and the whole description as JSON and for a browser."""
    title = document["info"]["title"]
    parts = [
        f"# REST of the {name.replace('-', ' ')}\n\n{document['info'].get('summary', title)}\n\n"
        f"Made from its OpenAPI description, which `GET /openapi.json` has and `/docs` shows where "
        f"it runs. Bodies and answers field by field: [{name}.html]({name}.html), "
        f"[{name}.json]({name}.json)."
    ]
    parts += [_operation(path, method, found) for path, method, found in _operations(document)]
    page = (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{title}</title></head>"
        f"<body><redoc spec-url='{name}.json'></redoc>"
        f"<script src='{REDOC.rpartition('/')[2]}'></script></body></html>"
    )
    return {
        f"reference/{name}.md": "\n\n".join(parts),
        f"reference/{name}.json": json.dumps(document, indent=1),
        f"reference/{name}.html": page,
    }


def _operations(document: Json) -> Iterator[tuple[str, str, Json]]:
    for path, item in document["paths"].items():
        for method in METHODS:
            if method in item:
                yield path, method, item[method]


def _operation(path: str, method: str, found: Json) -> str:
    parts = [
        f"## {method.upper()} `{path}`",
        f"**{found['summary']}.** {found.get('description', '')}",
    ]
    if parameters := [each for each in found.get("parameters", []) if "name" in each]:
        rows = [
            f"| `{each['name']}` | {each['in']} | {_cell(each.get('description', ''))} |"
            for each in parameters
        ]
        parts.append("| parameter | in | what it is |\n|---|---|---|\n" + "\n".join(rows))
    if "requestBody" in found:
        parts.append(f"Body: {_schemas(found['requestBody'])}.")
    answers = [
        f"{status} {_schemas(answer)}".strip() for status, answer in found["responses"].items()
    ]
    parts.append(f"Answers: {', '.join(answers)}.")
    return "\n\n".join(parts)


def _schemas(part: Json) -> str:
    """What a body is called, by its type."""
    found = []
    for kind, media in part.get("content", {}).items():
        name = media.get("schema", {}).get("$ref", "").rpartition("/")[2]
        found.append(f"`{name or kind}`")
    return " or ".join(dict.fromkeys(found))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
