"""Reads answers of other programs over HTTP, none of them without a bound."""

from __future__ import annotations

import aiohttp


async def body_of(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    """The body of an answer.

    Raises:
        ValueError: it is larger than `max_bytes`.
        aiohttp.ClientError: the connection broke.
    """
    body = b""
    async for part in response.content.iter_any():
        body += part
        if len(body) > max_bytes:
            raise ValueError(f"larger than {max_bytes} bytes")
    return body
