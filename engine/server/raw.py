"""Answers written byte for byte, for cases in which no application writes them."""

from __future__ import annotations

from http import HTTPStatus


def last_answer(status: int, content_type: str, body: bytes, *headers: tuple[str, str]) -> bytes:
    """A whole HTTP/1.1 answer after which the connection closes."""
    lines = [
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        f"content-type: {content_type}",
        f"content-length: {len(body)}",
        "connection: close",
        *(f"{name}: {value}" for name, value in headers),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body
