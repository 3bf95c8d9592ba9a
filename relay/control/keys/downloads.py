"""The keys that sign each region's download addresses, all derived from one secret."""

from __future__ import annotations

import hashlib
import hmac

SECRET_BYTES = 32


def download_key(secret: bytes, region: str, generation: int = 0) -> bytes:
    """The key of one region.

    Args:
        generation: how often it was replaced; the keys before are useless then.
    """
    named = f"{region}\0{generation}" if generation else region
    return hmac.new(secret, named.encode(), hashlib.sha256).digest()
