"""Workloads: keep an uploaded trace, show it, remove it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO, TypeVar

from starlette.concurrency import run_in_threadpool

from api.aside.process import AsideError, AsideLimits
from api.schemas.workloads import WorkloadSummary, WorkloadView
from api.services.audit import record
from api.web.aside import Aside
from api.web.auth import Caller
from api.web.errors import ApiError, FieldError
from store import UnitOfWork
from store.models import WorkloadRow
from store.models.base import Json
from store.workloads import compress

READ_LIMITS = AsideLimits(seconds=60.0, memory_mib=4096)
PIECE_BYTES = 2**20
_LINE = re.compile(r"\bline (\d+)")
ViewT = TypeVar("ViewT", bound=WorkloadSummary)


@dataclass(frozen=True, kw_only=True)
class Upload:
    """A trace that came and was read: compressed pieces, and what is known of it."""

    name: str
    form: str
    num_bytes: int
    sha256: str
    facts: Json
    parts: tuple[bytes, ...]

    @property
    def request(self) -> Json:
        """What makes a repeated request the same one."""
        return {"name": self.name, "form": self.form, "sha256": self.sha256}


@asynccontextmanager
async def receive(chunks: AsyncIterator[bytes]) -> AsyncIterator[Path]:
    """The body in a temporary file, without ever being in memory as a whole."""
    with NamedTemporaryFile(prefix="gearshift-trace-") as file:
        await _write(file, chunks)
        yield Path(file.name)


async def read(path: Path, aside: Aside, *, name: str, form: str) -> Upload:
    """Read the trace in the file, in a process of its own.

    Raises:
        ApiError: 422, a row that cannot be read, with its line; 429, too many are read already.
    """
    try:
        answer = await aside.run("read_trace", {"path": str(path), "form": form}, READ_LIMITS)
    except AsideError as error:
        raise _refusal(str(error).replace(str(path), name)) from error
    return await run_in_threadpool(_pack, path, name, answer)


def keep(uow: UnitOfWork, upload: Upload, *, caller: Caller) -> WorkloadRow:
    """Keep a trace."""
    row = WorkloadRow(
        name=upload.name,
        form=upload.form,
        num_bytes=upload.num_bytes,
        sha256=upload.sha256,
        facts=upload.facts,
        created_by=caller.actor,
    )
    uow.workloads.add(row, upload.parts)
    after = upload.request
    record(uow, caller, "workload.create", f"workloads/{row.id}", reason=row.name, after=after)
    return row


def delete(uow: UnitOfWork, workload_id: str, *, caller: Caller) -> None:
    """Remove a workload that no job names.

    Raises:
        NotFoundError: there is none.
        ConflictError: a job names it.
    """
    row = uow.workloads.delete(workload_id)
    before: Json = {"name": row.name, "form": row.form, "sha256": row.sha256}
    record(uow, caller, "workload.delete", f"workloads/{row.id}", reason="", before=before)


def view(row: WorkloadRow, kind: type[ViewT]) -> ViewT:
    """A workload with its facts."""
    own = {name: getattr(row, name) for name in WorkloadSummary.model_fields if hasattr(row, name)}
    return kind.model_validate({**row.facts, **own})


def whole_view(row: WorkloadRow) -> WorkloadView:
    """A workload with all of its facts."""
    return view(row, WorkloadView)


async def _write(file: IO[bytes], chunks: AsyncIterator[bytes]) -> None:
    async for chunk in chunks:
        await run_in_threadpool(file.write, chunk)
    await run_in_threadpool(file.flush)


def _pack(path: Path, name: str, answer: Json) -> Upload:
    digest, parts = hashlib.sha256(), []
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            digest.update(piece)
            parts.append(compress(piece))
    return Upload(
        name=name,
        form=answer["form"],
        num_bytes=path.stat().st_size,
        sha256=digest.hexdigest(),
        facts=answer["facts"],
        parts=tuple(parts),
    )


def _refusal(detail: str) -> ApiError:
    """A trace that cannot be read; ``line`` is that of the first row at fault."""
    found = _LINE.search(detail)
    errors = [FieldError(pointer="", detail=detail)]
    if found is None:
        return ApiError(422, "invalid_trace", detail, errors=errors)
    return ApiError(422, "invalid_trace", detail, errors=errors, line=int(found[1]))
