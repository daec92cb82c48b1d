"""Which paths are the dashboard's; all others stay those of the API."""

from __future__ import annotations

LOGIN, LOGOUT, UPLOAD = "/login", "/logout", "/workloads"
# NiceGUI's own: files of its package, and its connection to open pages.
ASSETS, SOCKET = "/_nicegui/", "/_nicegui_ws/"
_PAGES = (
    "/audit",
    "/engines",
    "/jobs",
    "/keys",
    "/recommendations",
    "/rollouts",
    "/what-if",
    "/workloads",
)
# Without NiceGUI there is one page, which says how to get it.
OPEN_PATHS = (LOGIN, LOGOUT)


def is_page(path: str) -> bool:
    """Whether a path is a page or what pages load."""
    return (
        path == "/"
        or any(path == page or path.startswith(f"{page}/") for page in _PAGES)
        or path.startswith((ASSETS, SOCKET))
    )
