"""Question: does anything get lost, doubled or left behind, whatever is killed, filled or cut?

python -m benchmarks.chaos --database sqlite --injections 200 --seed 0 --out FILE.md \
    --journal FILE.jsonl

With ``--journal`` a run that was cut goes on with the injection after its last one, in a new world.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from benchmarks.chaos.campaign import Injection, run
from benchmarks.chaos.journal import Journal
from benchmarks.chaos.report import report
from benchmarks.chaos.sandbox import adopt_orphans, enter_namespaces, unmount
from benchmarks.chaos.world import World
from benchmarks.quiet import OtherPrograms
from benchmarks.reporting import publish


def main() -> int:
    """Run a campaign and report; 1 if something that must hold did not."""
    options = _options()
    enter_namespaces()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    adopt_orphans()
    folder = Path(tempfile.mkdtemp(prefix="chaos"))
    folder.chmod(0o755)  # PostgreSQL runs as another user
    # Where its mounts are its own they go with it, but the folder below them stays writable.
    journal = _journal(options, folder)
    outcome = journal.read()

    def note(injection: Injection) -> None:
        journal.add(injection)
        _say(injection)

    with OtherPrograms() as others:
        world = World(folder, options.database)
        journal.begin()
        leftovers = run(
            world,
            outcome,
            count=options.injections,
            seed=options.seed,
            only=options.only,
            minutes=options.minutes,
            say=note,
        )
    journal.end(leftovers)
    text = report(
        outcome,
        database=options.database,
        seed=options.seed,
        wanted=options.injections,
        others_share=others.share,
    )
    publish(text, options.out)
    if outcome.violations:
        kept = Path(f"{folder}-logs")
        shutil.copytree(folder / "logs", kept)
        print(f"what the programs said: {kept}")
    if world.has_disk:
        unmount(world.disk)
    shutil.rmtree(folder, ignore_errors=True)
    return 1 if outcome.violations else 0


def _journal(options: argparse.Namespace, folder: Path) -> Journal:
    campaign = {
        "database": options.database,
        "seed": options.seed,
        "injections": options.injections,
        "only": list(options.only),
    }
    return Journal(path=options.journal or folder / "journal.jsonl", campaign=campaign)


def _say(injection: Injection) -> None:
    ends = ", ".join(f"{n} {end}" for end, n in sorted(injection.ends.items()))
    print(
        f"{injection.number:4d} {injection.kind:34s} recovered {injection.recovered_s:5.2f} s, "
        f"in all {injection.seconds:5.1f} s; {ends}; last {injection.waited_for}",
        flush=True,
    )
    for violation in injection.violations:
        print(f"     VIOLATION in injection {injection.number}: {violation}", flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--injections", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60.0, help="stop after these, if not done")
    parser.add_argument("--only", nargs="+", default=(), help="kinds with these words")
    parser.add_argument("--journal", type=Path, help="note injections here, go on after its last")
    parser.add_argument("--out", type=Path, help="also write the report here")
    options = parser.parse_args()
    for name in ("journal", "out"):  # this command is started again, from the same folder
        if (path := getattr(options, name)) is not None and not path.parent.is_dir():
            parser.error(f"--{name} {path}: there is no folder {path.parent}; make it first")
    return options


if __name__ == "__main__":
    raise SystemExit(main())
