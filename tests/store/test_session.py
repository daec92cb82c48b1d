"""The unit of work commits once at its edge, and connections have the settings we rely on."""

from __future__ import annotations

import os
import tempfile
import threading
import traceback
from pathlib import Path

import pytest
import sqlalchemy as sa

from store import CursorError, Database, PageRequest, StoreError
from store.connections import LOG_PAGES
from store.models.base import utc_now
from store.outage import is_outage


def test_leaving_the_block_commits(database: Database) -> None:
    with database.begin() as uow:
        job = uow.jobs.add(spec={"seed": 1}, num_trials=3, created_by="key_1")
    with database.read() as uow:
        assert uow.jobs.get(job.id).spec == {"seed": 1}


def test_an_error_in_the_block_rolls_everything_back(database: Database) -> None:
    def add_then_fail() -> None:
        with database.begin() as uow:
            job = uow.jobs.add(spec={}, num_trials=1, created_by="key_1")
            uow.jobs.append_event(job.id, "state", {})
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        add_then_fail()
    with database.read() as uow:
        assert uow.jobs.list_page(PageRequest()).items == []


def test_a_new_file_and_what_sqlite_makes_beside_it_are_the_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "new.db"
    with Database(f"sqlite:///{path}").begin() as uow:
        uow.session.execute(sa.text("CREATE TABLE a (b)"))
        found = {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir()}
    assert found == {"new.db": 0o600, "new.db-wal": 0o600, "new.db-shm": 0o600}


def test_a_checkpoint_empties_the_log_of_sqlite(tmp_path: Path) -> None:
    path, log = tmp_path / "new.db", tmp_path / "new.db-wal"
    database = Database(f"sqlite:///{path}")
    with database.begin() as uow:
        uow.session.execute(sa.text("CREATE TABLE a (b)"))

    def write(num_pages: int) -> None:
        with database.begin() as uow:
            uow.session.execute(sa.text(f"INSERT INTO a VALUES (zeroblob({4096 * num_pages}))"))

    write(LOG_PAGES)
    size = log.stat().st_size
    before = path.stat().st_size
    database.checkpoint()
    assert path.stat().st_size > before
    write(LOG_PAGES // 2)
    assert log.stat().st_size == size, "it began anew"


def test_a_file_that_is_there_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    path.touch()
    path.chmod(0o640)
    with Database(f"sqlite:///{path}").begin() as uow:
        uow.session.execute(sa.text("CREATE TABLE a (b)"))
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_file_that_cannot_be_written_is_not_opened_and_its_outage_ends_with_that() -> None:
    """Opened to read only, it would stay so."""
    nobody = 65534
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "read-only.db"
        database = Database(f"sqlite:///{path}")
        with database.begin() as uow:
            uow.session.execute(sa.text("CREATE TABLE a (b)"))
        database.close()
        Path(folder).chmod(0o777)
        path.chmod(0o444)
        user = os.geteuid()
        if user == 0:
            os.seteuid(nobody)  # root may write everything
        try:
            with pytest.raises(sa.exc.OperationalError, match="cannot be written") as caught:
                database.engine.connect()
        finally:
            os.seteuid(user)
        assert is_outage(caught.value)
        path.chmod(0o600)
        with database.begin() as uow:
            uow.session.execute(sa.text("INSERT INTO a VALUES (1)"))
        database.close()


def test_what_a_reader_changes_is_thrown_away(database: Database) -> None:
    with database.begin() as uow:
        job = uow.jobs.add(spec={}, num_trials=1, created_by="key_1")
    with database.read() as uow:
        uow.jobs.get(job.id).reason = "changed"
    with database.read() as uow:
        assert uow.jobs.get(job.id).reason != "changed"


def test_a_connection_in_use_while_the_database_is_closed_is_closed_after_it(
    database: Database,
) -> None:
    with database.engine.connect() as used:
        own = used.connection.dbapi_connection
        assert own is not None
        database.close()
        assert used.execute(sa.select(1)).scalar_one() == 1
    with pytest.raises(Exception, match="closed"):
        own.cursor().execute("SELECT 1")


def test_times_come_back_aware_and_in_utc_to_the_microsecond(database: Database) -> None:
    before = utc_now()
    with database.begin() as uow:
        job = uow.jobs.add(spec={}, num_trials=1, created_by="key_1")
        job.started_at = before
    with database.read() as uow:
        found = uow.jobs.get(job.id)
    assert found.started_at == before
    assert found.created_at.utcoffset() is not None


def test_a_naive_time_is_refused(database: Database) -> None:
    with database.begin() as uow:
        job = uow.jobs.add(spec={}, num_trials=1, created_by="key_1")
        job.started_at = utc_now().replace(tzinfo=None)
        with pytest.raises(sa.exc.StatementError, match="no time zone"):
            uow.session.flush()
        uow.session.rollback()


def test_writers_on_many_threads_wait_for_each_other_and_none_is_lost(database: Database) -> None:
    with database.begin() as uow:
        job = uow.jobs.add(spec={}, num_trials=1, created_by="key_1")

    def write() -> None:
        for _ in range(5):
            with database.begin() as uow:
                uow.jobs.append_event(job.id, "tick", {})

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.read() as uow:
        events = uow.jobs.list_events(job.id, after=0)
    assert [event.seq for event in events] == list(range(1, 21))


def test_sqlite_connections_use_a_log_foreign_keys_and_a_busy_timeout(sqlite_url: str) -> None:
    database = Database(sqlite_url)
    with database.engine.connect() as connection:
        pragma = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "foreign_keys", "busy_timeout")
        }
    database.close()
    assert pragma == {"journal_mode": "wal", "foreign_keys": 1, "busy_timeout": 30_000}


@pytest.mark.parametrize("url", ["nonsense", "mysql://localhost/x", "sqlite://"])
def test_a_url_that_cannot_serve_is_refused_with_the_way_out(url: str) -> None:
    with pytest.raises(StoreError, match=r"sqlite|cannot be read|SQLite"):
        Database(url)


@pytest.mark.parametrize(
    "url", ["postgresql://me:p@ss:hunter2@db:5432/x", "postgresql://me:hunter2@db:54x/x"]
)
def test_of_a_url_that_cannot_be_read_no_password_is_told(url: str) -> None:
    with pytest.raises(StoreError, match="cannot be read") as caught:
        Database(url)
    told = "".join(traceback.format_exception(caught.value))
    assert "hunter2" not in told


def test_a_database_that_cannot_be_opened_is_named_without_its_password() -> None:
    database = Database("postgresql+psycopg://me:hunter2@127.0.0.1:1/x")
    with pytest.raises(StoreError, match="cannot be opened") as caught:
        database.require_reachable()
    database.close()
    assert "hunter2" not in str(caught.value)


def test_a_page_after_a_key_of_another_kind_is_refused(database: Database) -> None:
    with database.read() as uow:
        with pytest.raises(CursorError, match="7 is no str"):
            uow.jobs.list_page(PageRequest(after=7))
        with pytest.raises(CursorError, match="'a' is no int"):
            uow.decisions.list_page(PageRequest(after="a"))
