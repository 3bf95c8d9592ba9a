from __future__ import annotations

import pytest

from relay.transport.ranges import part_of


@pytest.mark.parametrize(
    ("headers", "status", "start", "length"),
    [
        ({}, 200, 0, 100),
        ({"range": "bytes=0-"}, 206, 0, 100),
        ({"range": "bytes=10-19"}, 206, 10, 10),
        ({"range": "bytes=90-200"}, 206, 90, 10),
        ({"range": "bytes=-5"}, 206, 95, 5),
        ({"range": "bytes=-500"}, 206, 0, 100),
        ({"range": "bytes=100-"}, 416, 0, 0),
        ({"range": "bytes=-0"}, 416, 0, 0),
        ({"range": "bytes=5-2"}, 200, 0, 100),
        ({"range": "bytes=-"}, 200, 0, 100),
        ({"range": "lines=1-2"}, 200, 0, 100),
        ({"range": "bytes=" + ",".join(f"{i}-{i}" for i in range(1000))}, 200, 0, 100),
        ({"range": "bytes=" + "9" * 30 + "-"}, 200, 0, 100),
        ({"range": "bytes=10-", "if-range": '"tag"'}, 206, 10, 90),
        ({"range": "bytes=10-", "if-range": '"other"'}, 200, 0, 100),
        ({"range": "bytes=10-", "if-range": 'W/"tag"'}, 200, 0, 100),
        ({"if-none-match": '"tag"'}, 304, 0, 0),
        ({"if-none-match": '"a", W/"tag"'}, 304, 0, 0),
        ({"if-none-match": '"a"'}, 200, 0, 100),
    ],
)
def test_ranges(headers: dict[str, str], status: int, start: int, length: int) -> None:
    part = part_of(headers, 100, "tag")
    assert (part.status, part.start, part.length) == (status, start, length)
    assert status == 304 or part.headers["Content-Length"] == str(length)


def test_headers_of_a_range() -> None:
    part = part_of({"range": "bytes=10-19"}, 100, "tag")
    assert part.headers["Content-Range"] == "bytes 10-19/100"
    assert part.headers["ETag"] == '"tag"'
    assert part_of({"range": "bytes=100-"}, 100, "tag").headers["Content-Range"] == "bytes */100"


def test_empty_file() -> None:
    assert (part_of({}, 0, "tag").status, part_of({}, 0, "tag").length) == (200, 0)
    assert part_of({"range": "bytes=0-"}, 0, "tag").status == 416
