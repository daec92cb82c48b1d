"""NiceGUI with our pages. It is one per process, and so is the shell around it."""

from __future__ import annotations

from functools import cache

from fastapi import FastAPI
from nicegui import ui

from api.dashboard.pages import (
    audit,
    engine,
    fleet,
    job,
    jobs,
    keys,
    new_engine,
    new_job,
    recommendation,
    rollout,
    rollouts,
    what_if,
    workload,
    workloads,
)

# A browser that was away for so long finds its page as it was.
RECONNECT_S = 10.0
# A page that takes longer is an error; a busy machine is none.
BUILD_S = 15.0
# Queries and messages that a page may be sent again after that.
HISTORY = 100
PAGES = (
    fleet,
    new_engine,  # before engines by their id
    engine,
    rollouts,
    rollout,
    jobs,
    new_job,
    job,
    recommendation,
    workloads,
    workload,
    what_if,
    keys,
    audit,
)


@cache
def make_shell() -> FastAPI:
    """The application that serves pages and what they load, for every service of this process.

    Whose page it is, the request tells (``state.context``).
    """
    shell = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    for module in PAGES:
        ui.page(module.PATH, title=module.TITLE, response_timeout=BUILD_S)(module.show)
    ui.run_with(
        shell,
        title="Gearshift",
        dark=None,
        language="en-US",
        reconnect_timeout=RECONNECT_S,
        message_history_length=HISTORY,
        show_welcome_message=False,
        tailwind=False,
        binding_refresh_interval=None,
    )
    return shell
