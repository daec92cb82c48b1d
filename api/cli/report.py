"""``gearshift report``: an answer to read, as Markdown, one HTML page, or JSON."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.cli.answers import answering, open_client
from api.cli.common import fail, log, print_text
from api.cli.engine_options import JsonOption
from api.cli.groups import check_writable, writing
from api.cli.key_options import CONTROL_KEY_VARIABLE

if TYPE_CHECKING:
    from tuner.report.answers import Form

JOB_ID = re.compile(r"job_[0-9a-z]+")
PATH = "/v1/tuning-jobs/"
SUFFIXES = {".json": "json", ".md": "markdown", ".html": "html"}


def report(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FILE|JOB",
            help="What plan, tune, simulate, bench, capacity or compare wrote (--out), or a tuning "
            "job: its id here, or its address at a control plane.",
        ),
    ],
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="markdown|html|json",
            help="By default as the file of --out ends (.md, .html, .json), else markdown.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write it here instead of to stdout.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write an answer as a report to read: the answer, its pictures and tables, why, and where the
    time of a step goes.

    The HTML page holds its pictures and loads nothing; Markdown and JSON hold the same numbers.
    """
    from tuner.report.answers import report_of, write_report
    from tuner.spec.errors import TunerError

    if as_json and form not in (None, "json"):
        fail(f"--json beside --format {form}: leave one out")
    wanted = _form("json" if as_json else form, out)
    if out is not None:
        check_writable(out)
    document = _find_document(source)
    try:
        text = write_report(report_of(document), wanted)
    except TunerError as error:
        raise TunerError(f"{source}: {error}") from error
    if out is None:
        print_text(text)
        return
    with writing():
        out.write_text(text, encoding="utf-8")
    log(f"report: {out}")


def _form(named: str | None, out: Path | None) -> Form:
    from tuner.report.answers import Form

    if named is None and out is not None:
        named = SUFFIXES.get(out.suffix.lower())
        if named is None:
            fail(f"--out {out}: end it in {', '.join(SUFFIXES)}, or add --format")
    try:
        return Form(named or Form.MARKDOWN)
    except ValueError:
        fail(f"--format {named}: known are {', '.join(Form)}")


def _find_document(source: str) -> Any:
    """The document that ``source`` names; ends where there is none.

    Raises:
        StoreError: no such job.
    """
    if PATH in source:
        return _remote(source)
    if JOB_ID.fullmatch(source) and not Path(source).exists():
        return _kept(source)
    try:
        return json.loads(Path(source).read_bytes())
    except OSError as error:
        fail(f"{source}: {error.strerror}; name a file that --out wrote, or a job's id")
    except (ValueError, RecursionError):
        fail(f"{source}: no JSON; name a file that --out wrote, or a job's id")


def _kept(job_id: str) -> Any:
    from api.cli.local_database import open_database
    from api.services.jobs import report as kept_report

    database = open_database()
    try:
        with database.read() as uow:
            return kept_report(uow, job_id)
    finally:
        database.close()


def _remote(address: str) -> Any:
    url, _, job_id = address.partition(PATH)
    with answering(url), open_client(url, os.environ.get(CONTROL_KEY_VARIABLE, "")) as client:
        return client.get_tuning_report(job_id.removesuffix("/report"))
