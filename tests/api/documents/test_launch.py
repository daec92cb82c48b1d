"""What people paste into a shell."""

from __future__ import annotations

import subprocess

from api.documents.launch import Launch


def test_a_note_of_several_lines_is_a_comment_and_runs_nothing() -> None:
    note = "for model a\necho from the note"
    launch = Launch(system="vllm", command="echo from the command", note=note)
    shell = subprocess.run(["sh"], input=launch.script, capture_output=True, text=True, check=True)
    assert shell.stdout == "from the command\n"
