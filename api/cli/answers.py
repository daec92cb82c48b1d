"""Answers of ``plan`` and ``tune`` by name: a file, or the id of a kept recommendation."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.cli.common import fail
from api.cli.key_options import CONTROL_KEY_VARIABLE

if TYPE_CHECKING:
    from api.clients.client import Client
    from api.documents.answer import Answer

RECOMMENDATION_ID = re.compile(r"rec_[0-9a-z]+")
PATH = "/v1/recommendations/"
RETRIES_VARIABLE = "GEARSHIFT_CONTROL_RETRIES"
USUAL_S = 30.0
FOUND = "gearshift.found"
CHOICES = "fastest|balanced|..."
CHOICE = "Another of the report's settings than the recommended ones."
ChoiceOption = Annotated[str | None, typer.Option(metavar=CHOICES, help=CHOICE)]


def find_answer(source: str, choice: str | None = None) -> Answer:
    """The answer that ``source`` names: a file of ``--out``, a recommendation's id (in the local
    database), or its address at a control plane. Ends where there is none.

    Raises:
        TunerError, PolicyError, StoreError: what is found there cannot be served.
    """
    if is_recommendation(source) or PATH in source:
        if choice is not None:
            fail("--choice is for reports; a recommendation holds its settings only")
        return _remote(source) if PATH in source else _kept(source)
    from api.documents.answer import read_answer
    from tuner.spec.errors import TunerError

    try:
        document = json.loads(Path(source).read_bytes())
    except OSError as error:
        fail(f"{source}: {error.strerror}; name a report of plan --out or tune --out, or rec_ID")
    except (ValueError, RecursionError):
        fail(f"{source}: no JSON; name a report of plan --out or tune --out")
    try:
        return read_answer(document, choice)
    except TunerError as error:
        raise TunerError(f"{source}: {error}") from error


def is_recommendation(source: str) -> bool:
    """Whether ``source`` is an id, not a file."""
    return RECOMMENDATION_ID.fullmatch(source) is not None and not Path(source).exists()


def _kept(recommendation_id: str) -> Answer:
    from api.cli.local_database import open_database
    from api.documents.answer import read_recommendation

    database = open_database()
    try:
        with database.read() as uow:
            found = uow.recommendations.get(recommendation_id)
            spec = None if found.job_id is None else uow.jobs.get(found.job_id).spec
            return read_recommendation(found.document, spec)
    finally:
        database.close()


def _remote(address: str) -> Answer:
    from api.documents.answer import read_recommendation

    url, _, recommendation_id = address.partition(PATH)
    with answering(url), open_client(url, os.environ.get(CONTROL_KEY_VARIABLE, "")) as client:
        found = client.get_recommendation(recommendation_id)
        spec = None if found.job_id is None else client.get_tuning_job(found.job_id).spec
    return read_recommendation(found.recommendation, spec)


def open_client(url: str, key: str, *, timeout_s: float = USUAL_S) -> Client:
    """A client of the control plane at ``url``, which a command may have to wait for as long as
    ``GEARSHIFT_CONTROL_RETRIES`` says. Ends where that is no number."""
    from api.clients.client import Client
    from api.clients.retries import Retries

    asked = os.environ.get(RETRIES_VARIABLE)
    if asked is None:
        return Client(url, key, timeout_s=timeout_s)
    if re.fullmatch("[0-9]{1,3}", asked) is None:
        fail(f"{RETRIES_VARIABLE}={asked}: a whole number, as in 8, or 0 for one attempt only")
    return Client(url, key, timeout_s=timeout_s, retries=Retries(times=int(asked)))


@contextmanager
def answering(url: str, *, way_out: str = "") -> Iterator[None]:
    """End with one line where the service or engine at ``url`` refuses, or does not answer, which
    ``way_out`` follows."""
    import httpx

    from api.clients.errors import ClientError

    try:
        yield
    except ClientError as error:
        fail(f"{url}: {error}")
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
        fail(f"{url}: no answer ({error}){way_out}")
    except (ValueError, LookupError, TypeError):
        fail(f"{url}: answers, but not as expected; is it the right address?")


def serve_defaults(answer: Answer) -> dict[str, Any]:
    """The options of ``engine serve`` that an answer stands for."""
    settings, place = answer.settings, answer.place
    caps = settings.caps
    options: dict[str, Any] = {
        "plan": settings.plan_text,
        "mode": settings.pin,
        "max_num_seqs": str(caps.max_num_seqs),
        "max_num_batched_tokens": str(caps.max_num_batched_tokens),
        "max_step_ms": caps.max_step_ms,
        "max_queue": caps.max_queue,
        "scheduling_policy": settings.order.value,
    }
    if place is not None:
        options |= {
            "model": place.model,
            "dtype": place.dtype,
            "device": place.device,
            "kv_cache_mib": place.kv_cache_mib,
            "block_size": place.block_size,
            "max_model_len": place.max_model_len,
            "quantization": place.quantization,
            "link": place.link,
        }
    return {name: str(value) for name, value in options.items() if value is not None}


def why_not_here(answer: Answer) -> str | None:
    """Why this machine's ranks cannot serve an answer; None where they can."""
    place = answer.place
    if place is None or place.hardware is None:
        return None
    rehearse = f"rehearse with --paced {place.hardware} (no model is run)"
    if not place.is_computable:
        return f"ranks here do not compute in {place.dtype}; {rehearse}, or take another system"
    count, needed = _count_devices(), answer.settings.plan.world_size
    if count < needed:
        return f"{needed} devices of {place.hardware} are needed, here are {count}; {rehearse}"
    return None


def _count_devices() -> int:
    """CUDA devices that ranks would see; torch, slow to load, is asked where a driver is."""
    from tuner.spec.inventory import list_devices

    if not list_devices():
        return 0
    import torch

    return torch.cuda.device_count()


def next_step(document: dict[str, Any], out: Path | None) -> str | None:
    """The command that serves an answer, where it is in a file or kept and this machine can run
    it."""
    from api.documents.answer import read_answer
    from tuner.described.parse import has_checkpoint

    source = document.get("recommendation_id") if out is None else str(out)
    if source is None or document["infeasible"] is not None:
        return None
    answer = read_answer(document)
    if answer.place is None or not has_checkpoint(answer.place.model):
        return None
    if why_not_here(answer) is not None:
        return None
    return f"next: gearshift engine serve --from {shlex.quote(source)}"


def read_source(ctx: typer.Context, source: str | None) -> str | None:
    """Make the answer's options the defaults: a config file and the command line win."""
    if source is not None:
        _read(ctx, source, ctx.params.get("choice"))
    return source


def read_choice(ctx: typer.Context, choice: str | None) -> str | None:
    """The same again, where the source was named before the choice."""
    source = ctx.params.get("source")
    if choice is not None and source is not None:
        _read(ctx, source, choice)
    return choice


def _read(ctx: typer.Context, source: str, choice: str | None) -> None:
    from api.cli.given import ANSWER, set_defaults

    ctx.meta[FOUND] = find_answer(source, choice)
    set_defaults(ctx, ANSWER, serve_defaults(ctx.meta[FOUND]))


@dataclass(frozen=True, kw_only=True)
class ServedAnswer:
    """An answer of plan or tune to start an engine from."""

    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="FILE|ID",
            is_eager=True,
            callback=read_source,
            help="As a report of plan --out or tune --out says, or a recommendation (its id here, "
            "or its address at a control plane); what the command line says wins.",
        ),
    ] = None
    choice: Annotated[
        str | None, typer.Option(metavar=CHOICES, is_eager=True, callback=read_choice, help=CHOICE)
    ] = None

    def find(self, ctx: typer.Context) -> Answer | None:
        """The answer, None where none is named."""
        if self.source is None and self.choice is not None:
            fail("--choice is of a report: name it with --from FILE")
        return ctx.meta.get(FOUND)
