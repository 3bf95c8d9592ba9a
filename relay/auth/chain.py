"""The one decision on every transport: who is this, or why is it refused?"""

from __future__ import annotations

import re
from collections.abc import Callable

from relay.auth.addresses import AddressRules
from relay.auth.certificates import CertificateVerifier
from relay.auth.principal import Method, Principal, Reason
from relay.auth.revocations import Revocations
from relay.auth.secrets import SecretForm, digest_of, id_of
from relay.auth.tokens import MAX_TOKEN_BYTES, TokenVerifier

_BEARER = re.compile(r"[Bb][Ee][Aa][Rr][Ee][Rr] +([A-Za-z0-9._~+/-]+=*)")
"""RFC 6750, section 2.1."""


class KeyVerifier:
    """API keys of one form.

    Args:
        find: the id of a key → its SHA-256, and whose it is; None for an unknown key.
    """

    def __init__(self, form: SecretForm, find: Callable[[str], tuple[bytes, Principal] | None]) -> None:
        self.form = form
        self._find = find

    def verify(self, key: str, now: float) -> Principal | Reason:
        """Find out whose key this is."""
        if not self.form.fits(key):
            return Reason.MALFORMED
        digest = digest_of(key)
        found = self._find(id_of(digest))
        if found is None or found[0] != digest:
            return Reason.UNKNOWN_KEY
        return Reason.EXPIRED if found[1].has_ended(now) else found[1]

    def current(self, key_id: str) -> Principal | None:
        """Whose key this is now: it may have been deleted since it was verified, or given an earlier end."""
        found = self._find(key_id)
        return found[1] if found is not None else None


class Chain:
    """Admits callers. A credential of a kind that is None here is not looked at.

    If several kinds are accepted, an Authorization header decides alone: a certificate is looked at only without one.

    Args:
        required_certificates: callers without a certificate that it accepts are refused, whatever else they bring.
    """

    def __init__(
        self,
        *,
        tokens: TokenVerifier | None = None,
        api_keys: KeyVerifier | None = None,
        certificates: CertificateVerifier | None = None,
        revocations: Revocations | None = None,
        addresses: AddressRules | None = None,
        required_certificates: CertificateVerifier | None = None,
    ) -> None:
        self._tokens = tokens
        self._api_keys = api_keys
        self._certificates = certificates
        self._revocations = revocations or Revocations()
        self._addresses = addresses or AddressRules()
        self._required_certificates = required_certificates

    def admits(self, ip: str) -> bool:
        """Whether an address may connect at all; for a look before TLS."""
        return self._addresses.admits(ip)

    def authenticate(
        self, authorization: str | None, certificate: bytes | None, ip: str, now: float
    ) -> Principal | Reason:
        """Find out who calls.

        Args:
            authorization: value of the header; None if there was none.
            certificate: the client's, DER, whose chain TLS has verified; None if it sent none.
            ip: where it calls from.
            now: Unix seconds.
        """
        if not self._addresses.admits(ip):
            return Reason.ADDRESS
        found = self._credential(authorization, certificate, now)
        if isinstance(found, Principal) and self._revocations.revokes(found):
            return Reason.REVOKED
        return found

    def reconsidered(self, principal: Principal) -> Principal | None:
        """Who an open session is by what is known now; None if its credential was taken away. Its end is not looked at."""
        if self._revocations.revokes(principal):
            return None
        if principal.method is Method.API_KEY and self._api_keys is not None:
            return self._api_keys.current(principal.credential_id)
        return principal

    def _credential(self, authorization: str | None, certificate: bytes | None, now: float) -> Principal | Reason:
        required, holder = self._required_certificates, None
        if required is not None:
            holder = Reason.NO_CREDENTIAL if certificate is None else required.verify(certificate, now)
            if isinstance(holder, Reason):
                return holder
        if authorization is not None and (self._tokens is not None or self._api_keys is not None):
            return self._bearer(authorization, now)
        if certificate is None or self._certificates is None:
            return Reason.NO_CREDENTIAL
        if holder is not None and required is self._certificates:
            return holder  # verified a moment ago
        return self._certificates.verify(certificate, now)

    def _bearer(self, authorization: str, now: float) -> Principal | Reason:
        if len(authorization) > MAX_TOKEN_BYTES:
            return Reason.MALFORMED
        match = _BEARER.fullmatch(authorization)
        if match is None:
            return Reason.MALFORMED
        credential = match[1]
        if self._api_keys is not None and (self._tokens is None or credential.startswith(self._api_keys.form.prefix)):
            return self._api_keys.verify(credential, now)
        assert self._tokens is not None
        return self._tokens.verify(credential, now)
