"""What every page shares: its frame, its texts and tables, and how it is kept up to date."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

import structlog
from fastapi import Request
from nicegui import ui
from nicegui.elements.mixins.text_element import TextElement
from nicegui.events import GenericEventArguments
from pydantic import ValidationError

from api.dashboard.paths import LOGIN, LOGOUT
from api.dashboard.style import STYLE, THEMES
from api.dashboard.visit import Visit
from api.dashboard.words import NONE
from api.schemas.access import Scope
from api.web.errors import ApiError, as_api_error

NAV = (
    ("/", "Fleet"),
    ("/rollouts", "Rollouts"),
    ("/jobs", "Tuning jobs"),
    ("/workloads", "Workloads"),
    ("/what-if", "What if"),
)
ADMIN_NAV = (("/keys", "Keys"), ("/audit", "Audit"))
THEME_COOKIE = "gearshift_theme"
POLL_S = 1.0
Row = dict[str, Any]
# A cell is a text, or a text with an address, or one with a tone and what follows it.
CELLS = """
<q-tr :props="props"><q-td v-for="c in props.cols" :key="c.name" :props="props"
  :data-label="c.label" :class="{unknown: c.value === 'NONE'}">
  <a v-if="c.value && c.value.href" :href="c.value.href">{{ c.value.text }}</a>
  <span v-else-if="c.value && c.value.tone"><span :class="'tag ' + c.value.tone">{{
    c.value.text }}</span>{{ c.value.more }}</span>
  <span v-else>{{ c.value }}</span>
</q-td></q-tr>
""".replace("NONE", NONE)


class Text(TextElement):
    """An element of HTML that holds a text."""

    def __init__(self, tag: str, text: str, classes: str = "") -> None:
        super().__init__(tag=tag, text=text)
        self.classes(classes)


@contextmanager
def frame(
    request: Request, visit: Visit, title: str, *, back: tuple[str, str] | None = None
) -> Iterator[None]:
    """The page around its content; ``back`` is where it belongs: path and text."""
    ui.add_head_html(f"<style>{STYLE}</style>")
    theme = request.cookies.get(THEME_COOKIE, "auto")
    dark = ui.dark_mode(THEMES.get(theme))
    Text("a", "Skip to content", "skip").props('href="#content"')
    with ui.element("header").classes("top"):
        ui.link("Gearshift", "/").classes("brand")
        with ui.element("nav").props('aria-label="Pages"'):
            for path, text in (*NAV, *(ADMIN_NAV if visit.may(Scope.ADMIN) else ())):
                link = ui.link(text, path)
                if _is_at(request.url.path, path):
                    link.props('aria-current="page"')
        with ui.element("div").classes("who"):
            who = Text("span", f"Key: {visit.key_name}", "soft")
            who.props["title"] = f"may {', '.join(visit.key_scopes)}"
            _theme_picker(dark, theme)
            with ui.element("form").props('method="post"') as form:
                form.props["action"] = LOGOUT
                Text("button", "Log out", "plain").props('type="submit"')
    # NiceGUI's own frame is the main landmark.
    with ui.element("div").props('id="content" tabindex="-1"').classes("page"):
        if back is not None:
            ui.link(f"← {back[1]}", back[0]).classes("soft")
        Text("h1", title)
        yield


@contextmanager
def card(title: str | None = None) -> Iterator[ui.element]:
    """A part of the page under a heading."""
    with ui.element("section").classes("card") as found:
        if title is not None:
            Text("h2", title)
        yield found


def empty(say: str, do: str) -> None:
    """Where there is nothing to show: that, and what to do next."""
    with ui.element("div").classes("empty"):
        Text("p", say, "say")
        Text("p", do)


def missing(request: Request, visit: Visit, say: str, *, back: tuple[str, str]) -> None:
    """The page of what there is not, which is 404."""
    ui.context.client.status_code = HTTPStatus.NOT_FOUND.value
    with frame(request, visit, "Not found", back=back), card():
        empty(say[:1].upper() + say[1:], "It may have been removed, or the address is wrong.")


def note(text: str, tone: str = "none") -> Text:
    """A sentence on a coloured ground, which is read out when it comes."""
    found = Text("p", text, f"note {tone}")
    found.props["role"] = "alert" if tone == "bad" else "status"
    return found


def hinted(shown: ui.input, hint: str) -> ui.input:
    """An input with a line below that says what may be in it."""
    shown.props("stack-label").props["hint"] = hint
    return shown


def button(text: str, act: Callable[[], Awaitable[None] | None], kind: str = "plain") -> Text:
    """A button; what its action cannot do is told in a notice."""

    async def press() -> None:
        await guarded(act)

    found = Text("button", text, kind).props('type="button"')
    found.on("click", press)
    return found


@contextmanager
def dialog(name: str) -> Iterator[ui.dialog]:
    """Something in front of the page; ``name`` is read out when it comes."""
    with ui.dialog() as found, ui.card().style("max-width:34rem"):
        # Not by ``props(...)``: it takes a text apart, and what follows a quote in somebody's name
        # would be attributes, of which those with a colon are run as code.
        found.props["aria-label"] = name
        yield found


async def confirm(question: str, *, yes: str, no: str, kind: str = "risk") -> bool:
    """Ask before something is done; ``kind`` is that of the button that says yes."""
    with dialog(question) as asked:
        Text("p", question)
        with ui.element("div").classes("row"):
            button(yes, lambda: asked.submit(True), kind)
            button(no, lambda: asked.submit(False))
    return bool(await asked)


def allow(pressed: ui.element, is_allowed: bool) -> None:
    """Let a button be pressed, or not."""
    if is_allowed:
        pressed.props(remove="disabled")
    else:
        pressed.props("disabled")


def facts(pairs: Sequence[tuple[str, str]]) -> Callable[[Sequence[str]], None]:
    """Values under their names; what it returns changes the values."""
    with ui.element("div").classes("facts"):
        shown = []
        for name, value in pairs:
            with ui.element("div"):
                Text("div", name)
                shown.append(Text("div", value))

    def change(values: Sequence[str]) -> None:
        for element, value in zip(shown, values, strict=True):
            if element.text != value:
                element.set_text(value)

    return change


class Table(ui.table):
    """A table of which the browser is sent the rows that it shows, ``page`` at a time (0: all).

    All 1,000 rows of a job were sent again with each new trial, however few of them one saw.
    """

    def __init__(self, columns: list[Row], rows: list[Row], page: int) -> None:
        super().__init__(
            columns=columns,
            rows=[],
            row_key="key",
            pagination={"page": 1, "rowsPerPage": page, "rowsNumber": 0},
        )
        self._all: list[Row] = []
        self._hide_turning(True)
        self.on("request", self._turn, ["pagination"])
        self.show_rows(rows)

    def show_rows(self, rows: list[Row]) -> None:
        """Other rows; what is seen of them is sent, if it changes."""
        self._all = rows
        self._show(self.pagination["page"])

    def _turn(self, asked: GenericEventArguments) -> None:
        self._show(int(asked.args["pagination"]["page"]))

    def _show(self, page: int) -> None:
        size = self.pagination["rowsPerPage"] or max(1, len(self._all))
        page = max(1, min(page, -(-len(self._all) // size)))
        place = {**self.pagination, "page": page, "rowsNumber": len(self._all)}
        shown = self._all[(page - 1) * size : page * size]
        if place != self.pagination:
            self.pagination = place
            self._hide_turning(len(self._all) <= size)
        if shown != self.rows:
            self.rows = shown

    def _hide_turning(self, is_hidden: bool) -> None:
        """What turns pages is there only where there are several."""
        self.props["hide-pagination"] = is_hidden


def table(
    columns: Sequence[tuple[str, str]],
    rows: list[Row],
    *,
    none: str = "nothing yet",
    page: int = 0,
    breaks: Collection[str] = (),
) -> Table:
    """A table with columns of name and label; narrow screens show each row as a list.

    ``page`` rows at a time, 0: all; ``none`` stands where there are no rows; ``breaks`` are columns
    whose long words may be broken, so that the table is no wider than the page.
    """
    made = [
        {"name": n, "label": t, "field": n, "align": "left", "classes": "breaks" * (n in breaks)}
        for n, t in columns
    ]
    found = Table(made, rows, page)
    found.add_slot("body", CELLS)
    found.props("flat")
    found.props["rows-per-page-options"] = [page]
    found.props["no-data-label"] = none
    return found.classes("w-full")


def chart(options: Row, label: str) -> ui.echart:
    """A chart; ``label`` says what it shows to whoever does not see it."""
    found = ui.echart(options, renderer="svg").props('role="img"')
    found.props["aria-label"] = f"Chart: {label}"
    return found


def redraw(shown: ui.echart, options: Row) -> None:
    """Put other data into a chart."""
    shown.options.clear()
    shown.options.update(options)
    shown.update()


def copied(text: str, label: str) -> None:
    """A text to paste elsewhere, with a button that copies it."""

    def copy() -> None:
        ui.clipboard.write(text)
        ui.notify("copied")

    with ui.element("div").classes("copy"):
        Text("pre", text).props('tabindex="0"')
        button("Copy", copy).props["aria-label"] = f"Copy {label}"


async def guarded(act: Callable[[], Awaitable[None] | None]) -> bool:
    """Do it; what the service refuses is told, and who is not known any more logs in again."""
    try:
        found = act()
        if found is not None:
            await found
    except Exception as error:
        refusal = as_api_error(error)
        if refusal.status == HTTPStatus.UNAUTHORIZED:
            ui.navigate.to(LOGIN)
            return False
        if refusal.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            structlog.get_logger("api.dashboard").exception("page failed")
        ui.notify(told_of(refusal), type="negative", timeout=8000)
        return False
    return True


def told_of(refusal: ApiError) -> str:
    """What was refused and why, each part with where it stands."""
    details = [f"{e.pointer}: {e.detail}" if e.pointer else e.detail for e in refusal.errors]
    return "; ".join(details) or refusal.detail


def wrong_fields(error: ValidationError) -> dict[str, str]:
    """What is wrong with a form, by the name of the field."""
    return {str(e["loc"][0]): e["msg"].removeprefix("Value error, ") for e in error.errors()}


def poll(refresh: Callable[[], Awaitable[None]], every_s: float = POLL_S) -> ui.timer:
    """Refresh the page now and then until it refuses; a notice tells why it did."""

    async def turn() -> None:
        if not await guarded(refresh):
            timer.interval = min(30.0, timer.interval * 2)
        else:
            timer.interval = every_s

    timer = ui.timer(every_s, turn, immediate=False)
    return timer


def page_path(*parts: str) -> str:
    """A path of ours with ids in it."""
    return "/" + "/".join(quote(part, safe="") for part in parts)


def _is_at(path: str, page: str) -> bool:
    if page == "/":
        return path == "/" or path.startswith("/engines/")
    return path.startswith((page, "/recommendations") if page == "/jobs" else page)


def _theme_picker(dark: ui.dark_mode, theme: str) -> None:
    def choose(name: str) -> None:
        dark.value = THEMES[name]
        ui.run_javascript(
            f"document.cookie='{THEME_COOKIE}={name};path=/;max-age=31536000;SameSite=Strict'"
        )

    names = {name: f"Colours: {name}" for name in THEMES}
    picker = ui.select(names, value=theme if theme in THEMES else "auto")
    picker.props('dense borderless aria-label="Colours"')
    picker.on_value_change(lambda event: choose(event.value))
