"""Addresses of package files: signed with the region's key, valid for a day, and the same for every agent."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence

from relay.aio.clock import Clock
from relay.opamp.packages import PackagesOffer, encode
from relay.transport.downloads import PATH, Denied

VALID_S = 24 * 3600
"""How long an address is valid, at least. All agents get the same address, so that an offer is encoded once for many."""
_ROUND_TO_S = 3600
_MAX_FIELDS = 1000


class Addresses:
    """Signs and verifies addresses."""

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock
        self._keys: Sequence[bytes] = ()
        self._fields: dict[tuple[bytes, str, int], bytes] = {}

    def use(self, keys: Sequence[bytes]) -> None:
        """Sign with the first of these keys from now on, and accept signatures by any of them."""
        self._keys = keys
        self._fields.clear()

    @property
    def has_key(self) -> bool:
        """Whether there is a key to sign with."""
        return bool(self._keys)

    def field(self, offer: PackagesOffer, base: str) -> bytes:
        """The encoded offer, with addresses below `base`."""
        expires_s = (self._clock.unix_ms() // 1000 // _ROUND_TO_S + 1) * _ROUND_TO_S + VALID_S
        key = (offer.hash, base, expires_s)
        field = self._fields.get(key)
        if field is None:
            if len(self._fields) >= _MAX_FIELDS:
                self._fields.clear()
            field = self._fields[key] = encode(offer, lambda sha256: self._address(base, sha256.hex(), expires_s))
        return field

    def _address(self, base: str, sha256: str, expires_s: int) -> str:
        signature = _sign(self._keys[0], sha256, expires_s)
        return f"{base.rstrip('/')}{PATH}{sha256}?expires={expires_s}&signature={signature}"

    def verify(self, sha256: str, query: Mapping[str, str]) -> None:
        """Verify the address in a request.

        Raises:
            Denied: the address was not issued for this file, or has expired.
        """
        expires, signature = query.get("expires", ""), query.get("signature", "")
        if not expires.isascii() or not expires.isdigit() or len(expires) > 12:
            raise Denied(403, "the address is incomplete")
        valid = [_sign(key, sha256, int(expires)) for key in self._keys]
        if not any(hmac.compare_digest(signature.encode(), expected.encode()) for expected in valid):
            raise Denied(403, "the signature of the address is wrong")
        if int(expires) * 1000 < self._clock.unix_ms():
            raise Denied(403, "the address has expired; the agent gets a new one when it reports the failure")


def _sign(key: bytes, sha256: str, expires_s: int) -> str:
    return hmac.new(key, f"{sha256}.{expires_s}".encode(), hashlib.sha256).hexdigest()
