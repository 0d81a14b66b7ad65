"""URLs as messages may show them: without what they may hold of secrets."""

from __future__ import annotations

import re

HIDDEN = "***"

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*:)(//)?", re.ASCII)
_PLACE = re.compile(
    r"((?:(?:[\w.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?)?(?:/[^?#]*)?)(\?[^#]*)?(?:#.*)?"
)


def redacted(url: str) -> str:
    """`url` without user, password, values of the query, and fragment; never raises.

    Whatever stands before the last `@` counts as user and password, since one that is not
    percent-encoded may hold any character. Of a text that is no URL only the scheme is shown.
    """
    url = url.strip()
    scheme = _SCHEME.match(url)
    if scheme is None or (not scheme[2] and scheme.end() < len(url)):
        return HIDDEN  # `user:password@host` has no scheme
    _, at, rest = url[scheme.end() :].rpartition("@")
    place = _PLACE.fullmatch(rest)
    if place is None or not rest.isprintable():
        return scheme[0] + HIDDEN
    return scheme[0] + (HIDDEN + "@" if at else "") + place[1] + ("?" + HIDDEN if place[2] else "")


def shown(text: str) -> str:
    """A setting as messages may show it: `redacted` where it may be a URL; never raises."""
    return redacted(text) if "//" in text or "@" in text else text
