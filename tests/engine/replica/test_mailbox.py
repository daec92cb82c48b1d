"""Commands for a loop: each is run or refused, also while the loop waits for something else."""

from __future__ import annotations

import threading

import pytest

from engine.replica.mailbox import Mailbox
from tests.waiting import wait_until


def test_a_closed_mailbox_has_run_what_was_posted_and_refuses_the_rest() -> None:
    mailbox, seen = Mailbox(), []

    def fail() -> None:
        raise ValueError("a bug")

    assert mailbox.post(lambda: seen.append(1))
    assert mailbox.post(fail)
    assert mailbox.post(lambda: seen.append(2))
    mailbox.close()
    assert seen == [1, 2]
    assert not mailbox.post(lambda: seen.append(3))
    mailbox.close()
    assert seen == [1, 2]


def test_a_wait_ends_with_a_command_and_a_command_stays_until_it_is_run() -> None:
    mailbox, seen = Mailbox(), []
    assert not mailbox.wait(0.0)
    thread = threading.Thread(target=lambda: mailbox.post(lambda: seen.append(1)))
    thread.start()
    assert mailbox.wait(60.0)
    assert mailbox.wait(0.0)
    thread.join()
    mailbox.run()
    assert seen == [1]
    assert not mailbox.wait(0.0)


def test_commands_are_run_by_another_thread_while_their_own_works() -> None:
    mailbox, threads = Mailbox(), []

    def work() -> str:
        mailbox.post(lambda: threads.append(threading.current_thread()))
        wait_until(lambda: bool(threads))
        return "done"

    assert mailbox.run_during(work, mailbox.run) == "done"
    assert threads[0] is not threading.current_thread()


def test_what_fails_in_a_command_or_in_the_work_is_raised_to_who_works() -> None:
    mailbox, seen = Mailbox(), []

    def fail() -> None:
        seen.append(1)
        raise ValueError("in a command")

    def work() -> None:
        mailbox.post(fail)
        wait_until(lambda: bool(seen))

    def break_off() -> None:
        raise KeyError("in the work")

    with pytest.raises(ValueError, match="in a command"):
        mailbox.run_during(work, mailbox.run)
    with pytest.raises(KeyError, match="in the work"):
        mailbox.run_during(break_off, mailbox.run)
