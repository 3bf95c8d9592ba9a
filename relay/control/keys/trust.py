"""The keys of a control plane, in use: made at its first start, and replaced one by one.

The root key signs which CAs and which policy nodes trust. It is written to `root.pem` and never read again: whoever holds it
should move it away. All others are in the database, encrypted with the master key.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from relay.aio.clock import Clock
from relay.aio.tasks import run_to_completion
from relay.auth.key_sets import KeyChain, KeySet, sign
from relay.auth.signing import Purpose, Signed, key_id, public_bytes
from relay.auth.signing import sign as sign_payload
from relay.control.access.actor import SYSTEM, Actor
from relay.control.keys.downloads import SECRET_BYTES, download_key
from relay.control.ledger.change import Change, Entry
from relay.control.ledger.ledger import Ledger
from relay.control.ledger.state import State
from relay.control.secrets.vault import Vault
from relay.control.trust.certificates import Issuer, Pair, new_authority
from relay.control.trust.rotation import (
    CA,
    DOWNLOADS,
    FORMER_CA,
    FORMER_DOWNLOADS,
    MANIFEST,
    Keys,
    Proposal,
    Rotation,
    following,
    sealed_as,
    version_of,
)
from relay.errors import Conflict, StoreError
from relay.fleet.view import rfc3339
from relay.observe import log
from relay.store.private import write_private

_log = log.get("opamp-relay.trust")
ROOT_FILE = "root.pem"
_DOMAIN_DIGITS = 16
_MAX_CAS = 8
_FORMER_DOWNLOADS_MS = 26 * 3_600_000
"""So long after a rotation of the downloads' secret, addresses of the former one are good."""


class Trust:
    """The keys of this control plane. Call `load` first.

    Args:
        folder: where `root.pem` is written at first.
    """

    def __init__(self, ledger: Ledger, vault: Vault, folder: Path, *, clock: Clock) -> None:
        self._ledger = ledger
        self._vault = vault
        self._folder = folder
        self._clock = clock
        self._chain: tuple[Sequence[Signed], KeyChain] | None = None
        self._changing = asyncio.Lock()
        """Held from before a secret is encrypted until it is stored: the master key must not change meanwhile."""
        self._opened: dict[bytes, bytes] = {}
        """Sealed → secret. Few, so that none is ever dropped."""

    async def load(self) -> None:
        """Make the keys, or see that they can be used.

        Raises:
            StoreError: they cannot be read, or not be stored.
        """
        self._settle_root()
        self._vault.settle((sealed_as(name), sealed) for name, sealed in self._keys.secrets.items())
        if not self._keys.key_sets:
            await self._make()
        self._open(CA)
        if self.current.signs_policy:
            self._open(MANIFEST)
        else:
            _log.warning(
                "policy_not_signed", hint="opampctl trust rotate manifest --root-key FILE signs it from then on"
            )
        await self._keep_downloads()

    @property
    def _fresh_root(self) -> Path:
        return self._folder / f"{ROOT_FILE}.new"

    def _settle_root(self) -> None:
        """Put a root key in its place if its key set was stored; else a crash came first, and it is the root of nothing."""
        if not self._fresh_root.exists():
            return
        try:
            if self._keys.key_sets:
                self._fresh_root.replace(self._folder / ROOT_FILE)
            else:
                self._fresh_root.unlink()
        except OSError as error:
            raise StoreError(f"{self._fresh_root}: {error.strerror}") from None

    async def _make(self) -> None:
        root, manifest = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
        public = public_bytes(root)
        trust_domain = f"opamp-{key_id(public)[:_DOMAIN_DIGITS]}"
        authority = new_authority(trust_domain, self._clock.unix_ms() / 1000)
        key_set = KeySet(
            1,
            trust_domain,
            {key_id(public): public},
            (authority.certificate.decode(),),
            _listed(public_bytes(manifest)),
        )
        file = self._folder / ROOT_FILE
        if file.exists():
            raise StoreError(f"{file} is of another database: move it away, or restore that database")
        try:
            write_private(self._fresh_root, pem_of(root))
        except OSError as error:
            raise StoreError(f"{file}: {error.strerror}") from None
        secrets = {CA: authority.key, MANIFEST: manifest.private_bytes_raw()}
        sealed = {name: self._vault.seal(name, secret) for name, secret in secrets.items()}
        signed = sign(key_set, root)
        await self._change(
            SYSTEM,
            None,
            lambda keys, _: dataclasses.replace(keys, key_sets=(signed,), secrets={**keys.secrets, **sealed}),
        )
        self._settle_root()
        _log.info("root_key_written", file=str(file), hint="move it away: this control plane never reads it")

    async def _keep_downloads(self) -> None:
        """Make the secret of download keys on first use, and anew if it cannot be decrypted.

        Until then agents download by addresses that are no longer accepted; they are offered new ones at once.
        """
        sealed = self._keys.secrets.get(DOWNLOADS)
        if sealed is not None and len(sealed) != SECRET_BYTES:  # earlier releases stored it as it is
            try:
                self._open(DOWNLOADS)
            except StoreError as error:
                _log.warning("download_keys_replaced", reason=str(error))
            else:
                return
        fresh = self._vault.seal(DOWNLOADS, os.urandom(SECRET_BYTES))
        await self._change(
            SYSTEM, None, lambda keys, _: dataclasses.replace(keys, secrets={**keys.secrets, DOWNLOADS: fresh})
        )

    # ---- what they are

    @property
    def _keys(self) -> Keys:
        return self._ledger.state.keys

    @property
    def chain(self) -> KeyChain:
        """All key sets."""
        signed = self._keys.key_sets
        if self._chain is None or self._chain[0] is not signed:
            self._chain = signed, KeyChain.of(signed)
        return self._chain[1]

    @property
    def key_sets(self) -> Sequence[Signed]:
        """All key sets with their signatures, oldest first."""
        return self._keys.key_sets

    @property
    def current(self) -> KeySet:
        """The newest key set."""
        return self.chain.current

    @property
    def root(self) -> str:
        """Id of the root that signs the newest key set; join tokens name it."""
        return next(iter(sorted(self.current.roots)))

    @property
    def authorities(self) -> bytes:
        """Certificates of the CAs, PEM."""
        return self.current.bundle.encode()

    @property
    def rotated_ms(self) -> int:
        """When the CA was last replaced; 0 for never."""
        return self._keys.rotated_ms

    def _open(self, name: str) -> bytes:
        sealed = self._keys.secrets.get(name)
        if sealed is None:
            raise StoreError(f"secret {name} is gone: restore a backup, or use opamp-relay rekey")
        if sealed not in self._opened:
            self._opened[sealed] = self._vault.open(sealed_as(name), sealed)
        return self._opened[sealed]

    # ---- what they do

    @property
    def issuer(self) -> Issuer:
        """Issues nodes' certificates."""
        current = self.current
        return Issuer(Pair(current.authorities[0].encode(), self._open(CA)), current.trust_domain)

    def server_authority(self, *, all_trust_newest: bool) -> str:
        """The CA that issues certificates of this control plane, PEM: one that all nodes trust."""
        is_newest = all_trust_newest or FORMER_CA not in self._keys.secrets
        return self.current.authorities[0 if is_newest else -1]

    def server_issuer(self, *, all_trust_newest: bool) -> Issuer:
        """Issues certificates of this control plane."""
        authority = self.server_authority(all_trust_newest=all_trust_newest)
        if authority == self.current.authorities[0]:
            return self.issuer
        return Issuer(Pair(authority.encode(), self._open(FORMER_CA)), self.current.trust_domain)

    def sign_manifest(self, payload: bytes) -> Signed | None:
        """Sign a manifest; None if nodes do not expect that, because no key set names the key."""
        return self._sign(Purpose.MANIFEST, payload) if self.current.signs_policy else None

    def sign_freshness(self, payload: bytes) -> Signed:
        """Sign a Freshness."""
        return self._sign(Purpose.FRESHNESS, payload)

    def _sign(self, purpose: Purpose, payload: bytes) -> Signed:
        return sign_payload(purpose, payload, Ed25519PrivateKey.from_private_bytes(self._open(MANIFEST)))

    def download_keys(self, state: State, region: str) -> list[bytes]:
        """Keys for the download addresses of a region: the first signs them, all are accepted."""
        generation = state.keys.generations.get(region, 0)
        names = [DOWNLOADS, FORMER_DOWNLOADS] if FORMER_DOWNLOADS in state.keys.secrets else [DOWNLOADS]
        return [download_key(self._open(name), region, generation) for name in names]

    # ---- how they change

    async def _change(self, by: Actor, entry: Entry | None, make: Callable[[Keys, int], Keys]) -> Keys:
        def change(state: State, now_ms: int) -> Change[Keys]:
            try:
                keys = make(state.keys, now_ms)
            except ValueError as error:
                raise Conflict(str(error)) from None
            return Change(dataclasses.replace(state, keys=keys), keys, entries=[entry] if entry is not None else [])

        return await self._ledger.change(by, change)

    async def propose(self, rotation: Rotation, *, root: bytes = b"", actor: Actor) -> Proposal:
        """Begin a rotation that a root must sign: make the new key, and say what to sign.

        Args:
            root: the new root's public key; for that rotation only.
        """
        async with self._changing:
            return await self._propose(rotation, root, actor)

    async def _propose(self, rotation: Rotation, root: bytes, actor: Actor) -> Proposal:
        if rotation is Rotation.CA and len(self.current.authorities) >= _MAX_CAS:
            raise Conflict(f"{_MAX_CAS} CAs are trusted already: wait until every node has a certificate of the newest")
        secrets: dict[str, bytes] = {}
        changes: dict[str, str | Mapping[str, bytes]] = {}
        if rotation is Rotation.MANIFEST:
            key = Ed25519PrivateKey.generate()
            secrets[MANIFEST] = key.private_bytes_raw()
            changes["manifests"] = _listed(public_bytes(key))
        elif rotation is Rotation.CA:
            authority = new_authority(self.current.trust_domain, self._clock.unix_ms() / 1000)
            secrets[CA] = authority.key
            changes["authority"] = authority.certificate.decode()
        else:
            changes["roots"] = _listed(root)
        sealed = {name: self._vault.seal(name, secret) for name, secret in secrets.items()}

        def make(keys: Keys, _: int) -> Keys:
            payloads = following(KeyChain.of(keys.key_sets).current, **changes)  # type: ignore[arg-type]
            return keys.with_proposal(Proposal(rotation, payloads), sealed)

        entry = Entry("propose", f"KeySet/{self.current.version + 1}", reason=f"rotate {rotation.value}")
        keys = await self._change(actor, entry, make)
        assert keys.proposal is not None
        return keys.proposal

    async def adopt(self, rotation: Rotation, signed: Sequence[Signed], *, actor: Actor) -> KeySet:
        """Put the proposed key sets in force.

        Raises:
            Conflict: they are not those that wait, or not signed by a root of the current key set and one of their own.
        """
        async with self._changing:
            entry = Entry("rotate", f"KeySet/{self.current.version + 1}", reason=rotation.value)
            await self._change(actor, entry, lambda keys, now_ms: keys.adopted(rotation, signed, now_ms))
        _log.info("keyset_changed", version=self.current.version, rotation=rotation.value)
        return self.current

    @property
    def closing(self) -> tuple[Signed, ...]:
        """The key set that ends the trust in former CAs, signed in advance; empty if there are none."""
        return self._keys.closing

    async def close(self, closing: tuple[Signed, ...]) -> None:
        """End the trust in former CAs, unless another rotation began since `closing` was looked at."""
        async with self._changing:
            if not closing or self._keys.closing != closing:
                return
            version = version_of(closing[0])
            await self._change(SYSTEM, Entry("close", f"KeySet/{version}"), lambda keys, _: keys.closed())
        _log.info("keyset_changed", version=version, rotation="the former CA is no longer trusted")

    async def rotate_downloads(self, *, actor: Actor) -> None:
        """Replace the secret of download keys. Addresses that agents have stay good to their end.

        Raises:
            Conflict: the former one is still needed for that.
        """
        async with self._changing:
            await self._rotate_downloads(actor)

    async def _rotate_downloads(self, actor: Actor) -> None:
        fresh = self._vault.seal(DOWNLOADS, os.urandom(SECRET_BYTES))

        def make(keys: Keys, now_ms: int) -> Keys:
            ends_ms = keys.downloads_ms + _FORMER_DOWNLOADS_MS
            if FORMER_DOWNLOADS in keys.secrets and now_ms <= ends_ms:
                raise ValueError(f"agents have addresses of the former secret until {rfc3339(ends_ms)}; try again then")
            secrets = {**keys.secrets, DOWNLOADS: fresh, FORMER_DOWNLOADS: keys.secrets[DOWNLOADS]}
            return dataclasses.replace(keys, secrets=secrets, downloads_ms=now_ms)

        await self._change(actor, Entry("rotate", "Keys/downloads"), make)

    async def forget_former(self, now_ms: int) -> None:
        """Forget the former secret of download keys once no address of it is good."""
        async with self._changing:
            if FORMER_DOWNLOADS in self._keys.secrets and now_ms > self._keys.downloads_ms + _FORMER_DOWNLOADS_MS:
                await self._change(
                    SYSTEM,
                    Entry("forget", "Keys/former-downloads"),
                    lambda keys, _: dataclasses.replace(
                        keys, secrets={name: s for name, s in keys.secrets.items() if name != FORMER_DOWNLOADS}
                    ),
                )

    async def rotate_master(self, *, actor: Actor) -> None:
        """Encrypt all secrets with another master key.

        Raises:
            StoreError: it could not be written; nothing has changed.
        """
        async with self._changing:
            # To its end, whatever happens to the request: between database and file there is no way back.
            await run_to_completion(self._rotate_master(actor), name="rotate-master")

    async def _rotate_master(self, actor: Actor) -> None:
        with self._vault.replacing() as seal:

            def make(keys: Keys, _: int) -> Keys:
                opened = {n: self._vault.open(sealed_as(n), sealed) for n, sealed in keys.secrets.items()}
                secrets = {name: seal(sealed_as(name), secret) for name, secret in opened.items()}
                return dataclasses.replace(keys, secrets=secrets)

            await self._change(actor, Entry("rotate", "Keys/master"), make)


def _listed(public: bytes) -> dict[str, bytes]:
    return {key_id(public): public}


def pem_of(key: Ed25519PrivateKey) -> bytes:
    """A private key as it is written to a file."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
