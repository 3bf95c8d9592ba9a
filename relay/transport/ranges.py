"""Chooses the part of a file that answers a request (RFC 9110, 13 and 14), without sockets.

A file's name is its SHA-256, so its content never changes. The SHA-256 is its entity tag too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})")


@dataclass(frozen=True, slots=True)
class ByteRange:
    """A part of a file, and the response that carries it."""

    status: int
    """200, 206, 304 or 416."""
    start: int
    length: int
    """Bytes of the body."""
    headers: dict[str, str]


def part_of(headers: Mapping[str, str], size: int, etag: str) -> ByteRange:
    """Choose the part.

    Args:
        headers: the request's, names in lower case.
        etag: without quotes.
    """
    common = {"Accept-Ranges": "bytes", "ETag": f'"{etag}"', "Content-Type": "application/octet-stream"}
    if etag in _tags(headers.get("if-none-match", "")):
        return ByteRange(304, 0, 0, {"ETag": f'"{etag}"'})
    range_text = headers.get("range", "")
    if_range = headers.get("if-range")
    if if_range is not None and if_range.strip() != f'"{etag}"':
        range_text = ""
    # A request for several ranges gets the whole file: clients that resume ask for one.
    match = _RANGE.fullmatch(range_text.replace(" ", ""))
    if match is None or match.groups() == ("", ""):
        return ByteRange(200, 0, size, {**common, "Content-Length": str(size)})
    first, last = match.groups()
    if first:
        start, end = int(first), min(int(last), size - 1) if last else size - 1
        if last and int(last) < int(first):
            return ByteRange(200, 0, size, {**common, "Content-Length": str(size)})
    else:
        start, end = max(0, size - int(last)), size - 1
    if start >= size or start > end:
        return ByteRange(416, 0, 0, {"Content-Range": f"bytes */{size}", "Content-Length": "0"})
    length = end - start + 1
    part_headers = {**common, "Content-Length": str(length), "Content-Range": f"bytes {start}-{end}/{size}"}
    return ByteRange(206, start, length, part_headers)


def _tags(text: str) -> set[str]:
    return {tag.strip().removeprefix("W/").strip('"') for tag in text.split(",") if tag.strip()}
