"""Bounds that hold for everything REST reads: finite numbers, whole ones that every JSON reader
keeps exactly, text that can be stored, and a depth."""

from __future__ import annotations

import math
from ipaddress import ip_address
from itertools import pairwise
from typing import Annotated, Any
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, Field

from engine.server.takes import NUMBER
from tuner.hardware.device import MAX_DEVICES
from tuner.workload.bounds import MAX_LENGTH_TOKENS

# The largest whole number of a column, and of JSON that every reader keeps exact (RFC 7493).
MAX_COLUMN = 2**31 - 1
MAX_JSON_INT = 2**53 - 1
# Sums and squares of such numbers are still finite.
MAX_JSON_FLOAT = 1e100
MAX_DEPTH = 64
MAX_ARRIVED = 10_000_000
# Bounds of durations: longer than any clock here is off by, and with finite rates.
MIN_WINDOW_S = 1e-6
MAX_SECONDS = 1e8
MAX_MS = MAX_SECONDS * 1e3


Whole = Annotated[int, NUMBER]
Version = Annotated[int, Field(ge=0, le=MAX_COLUMN), NUMBER]
Count = Annotated[int, Field(ge=0, le=MAX_JSON_INT), NUMBER]
Tokens = Annotated[int, Field(ge=0, le=MAX_LENGTH_TOKENS), NUMBER]
Seconds = Annotated[float, Field(strict=True, ge=0, le=MAX_SECONDS, allow_inf_nan=False)]
Milliseconds = Annotated[float, Field(strict=True, ge=0, le=MAX_MS, allow_inf_nan=False)]
DeviceIndex = Annotated[int, Field(ge=0, lt=MAX_DEVICES), NUMBER]


def check_plain(value: Any) -> Any:
    """Give ``value`` back.

    Raises:
        ValueError: something in it cannot be kept; the message starts with its JSON pointer.
    """
    if not _is_plain(value, 0):
        _find_fault(value)
    return value


def _is_plain(value: Any, depth: int) -> bool:
    """Whether all of it can surely be kept. Nearly all can, and the quick look, without words and
    pointers, takes a quarter of the time; where it says no, :func:`_find_fault` decides."""
    kind = type(value)
    if kind is str:
        return value.isascii() and "\0" not in value
    if kind is float:
        return bool(-MAX_JSON_FLOAT <= value <= MAX_JSON_FLOAT)
    if kind is int:
        return bool(-MAX_JSON_INT <= value <= MAX_JSON_INT)
    if kind is bool or value is None:
        return True
    if depth >= MAX_DEPTH:
        return False
    if kind is dict:
        return all(_is_plain(k, 0) and _is_plain(v, depth + 1) for k, v in value.items())
    return kind is list and all(_is_plain(part, depth + 1) for part in value)


def _find_fault(value: Any) -> None:
    rest: list[tuple[str, Any, int]] = [("", value, 0)]
    while rest:
        pointer, found, depth = rest.pop()
        where = f"{pointer}: " if pointer else ""
        if depth > MAX_DEPTH:
            raise ValueError(f"{where}nested deeper than {MAX_DEPTH}")
        match found:
            case str():
                _check_text(found, where)
            case bool():
                pass
            case int():
                if abs(found) > MAX_JSON_INT:
                    raise ValueError(f"{where}a whole number must be within +-{MAX_JSON_INT}")
            case float():
                if not math.isfinite(found):
                    raise ValueError(f"{where}{found} is not a finite number")
                if abs(found) > MAX_JSON_FLOAT:
                    raise ValueError(f"{where}a number must be within +-{MAX_JSON_FLOAT:g}")
            case dict():
                for key, part in found.items():
                    _check_text(key, f"{where}key {key!r}: ")
                    rest.append((f"{pointer}/{key}", part, depth + 1))
            case list():
                rest += [(f"{pointer}/{i}", part, depth + 1) for i, part in enumerate(found)]


PlainJson = Annotated[dict[str, Any], AfterValidator(check_plain)]


def _check_text(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{where}holds a lone surrogate, which is no character") from error
    if "\0" in text:
        raise ValueError(f"{where}holds a null character")


def check_public_url(url: str) -> str:
    """Give the address of an engine back, which people and dashboards follow.

    Raises:
        ValueError: no HTTP address, one with a password in it, or one that only this machine's
            network reaches by itself (link-local, as clouds have their secrets at).
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is no address as in http://HOST:PORT")
    if not _can_be_called(parts):
        raise ValueError(f"{url!r}: the name of its host or its port cannot be")
    if parts.username is not None or parts.password is not None:
        raise ValueError("an address must not hold a user or password")
    if _is_link_local(parts.hostname):
        raise ValueError(
            f"{parts.hostname} is a link-local address, which is nobody's of a network"
        )
    return url


def _can_be_called(parts: SplitResult) -> bool:
    """Whether the host may be looked up and the port is one: a label has at most 63 letters."""
    try:
        return bool((parts.hostname or "").encode("idna")) and parts.port != 0
    except ValueError:
        return False


def _is_link_local(host: str) -> bool:
    try:
        return ip_address(host).is_link_local
    except ValueError:
        return False  # a name


def check_rising(token_ms: list[float]) -> list[float]:
    """Give the times of tokens back.

    Raises:
        ValueError: one that is before the one before it.
    """
    if sorted(token_ms) == token_ms:  # the quick look: there may be thousands
        return token_ms
    for index, (before_ms, ms) in enumerate(pairwise(token_ms), 1):
        if ms < before_ms:
            raise ValueError(
                f"times of tokens must not fall: {ms:g} at {index} comes after {before_ms:g}"
            )
    return token_ms
