"""Package bytes at the control plane: uploads that can be resumed, and whatever store holds them afterwards.

What is uploaded gathers in a folder here, is verified as a whole, and only then goes into the store (a folder, S3, GCS,
Azure) under its SHA-256. Memory stays small whatever the size: nothing is held but the piece that is on its way.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, LocalStore, ObjectStore, S3Store

from relay.errors import Conflict, NotFound, StoreError, TooLarge
from relay.observe import log
from relay.settings.parts import PackageStorage
from relay.store.blobs import BlobStore

_log = log.get("opamp-relay.blobs")
PIECE_BYTES = 1 << 20
_AT_ONCE = 2
"""Pieces of one upload to the store under way together."""


def open_store(settings: PackageStorage, folder: Path) -> ObjectStore:
    """The store that the settings name; a folder is made.

    Raises:
        StoreError: it cannot be used.
    """
    config: dict[str, Any] = dict(settings.options)
    if settings.region:
        config["region"] = settings.region
    client: Any = {}
    if settings.endpoint:
        config["endpoint"] = settings.endpoint
        client["allow_http"] = settings.endpoint.startswith("http://")
    prefix = settings.prefix or None
    retries: Any = {"max_retries": 3, "retry_timeout": timedelta(seconds=20)}
    common: dict[str, Any] = {
        "prefix": prefix,
        "config": config,
        "client_options": client,
        "retry_config": retries,
    }
    try:
        if settings.type == "s3":
            return S3Store(settings.bucket, **common)
        if settings.type == "gcs":
            return GCSStore(settings.bucket, **common)
        if settings.type == "azure":
            return AzureStore(settings.bucket, **common)
        return LocalStore(str(folder), mkdir=True)
    except (BaseError, ValueError, TypeError, OSError) as error:
        raise StoreError(f"storage.packages: {_short(error)}") from None


class Blobs:
    """All package files.

    Args:
        spool: where uploads gather.
        max_file_bytes: the largest file.
    """

    def __init__(self, store: ObjectStore, spool: BlobStore, *, max_file_bytes: int) -> None:
        self._store = store
        self._spool = spool
        self._max_file_bytes = max_file_bytes
        self._writing: dict[str, asyncio.Lock] = {}
        self.damaged: dict[str, None] = {}
        """SHA-256 of files that were not what they should be, and are gone until somebody pushes them again."""

    async def verify(self, sha256: str) -> None:
        """Read a whole file; one that is not what its name says goes: it helps nobody, and stands in the way of a good one.

        Raises:
            StoreError: the store cannot be asked.
        """
        digest = hashlib.sha256()
        try:
            async for piece in self.read(sha256):
                digest.update(piece)
        except NotFound:
            return
        if digest.hexdigest() != sha256:
            await self.delete(sha256)
            self.damaged[sha256] = None
            _log.error("package_file_damaged", sha256=sha256, consequence="the file is missing; push it again")

    async def size(self, sha256: str) -> int | None:
        """Bytes of a file in the store; None where it is not there.

        Raises:
            StoreError: the store cannot be asked.
        """
        try:
            return int((await obstore.head_async(self._store, _path(sha256)))["size"])
        except FileNotFoundError:
            return None
        except BaseError as error:
            raise StoreError(f"storage.packages: {_short(error)}") from None

    async def received(self, sha256: str) -> tuple[int, bool]:
        """(bytes of an upload that are here, whether the file is in the store already)."""
        size = await self.size(sha256)
        return (size, True) if size is not None else (self._spool.partial_bytes(sha256), False)

    async def receive(self, sha256: str, offset: int, content: bytes) -> int:
        """Take the next piece of an upload; give how much there is now.

        Raises:
            Conflict: another offset is expected; its number is in the message.
            TooLarge: the file is larger than any may be.
            StoreError: it cannot be written.
        """
        async with self._writing.setdefault(sha256, asyncio.Lock()):
            held = self._spool.partial_bytes(sha256)
            if not held and await self.size(sha256) is not None:
                raise Conflict(f"{sha256} has already been uploaded")
            if offset != held:
                raise Conflict(f"the upload goes on at byte {held}, not {offset}")
            if held + len(content) > self._max_file_bytes:
                raise TooLarge(
                    f"a package file may be at most {self._max_file_bytes} bytes (storage.packages.max_file_bytes)"
                )
            # Uploads that nobody goes on with make room, the oldest first.
            if not await asyncio.to_thread(self._spool.make_room, len(content), {sha256}):
                raise StoreError("no space for uploads (storage.packages.max_bytes, .keep_free)")
            await asyncio.to_thread(self._spool.append, sha256, content)
            return held + len(content)

    async def finish(self, sha256: str, size: int) -> None:
        """Verify an upload and put it into the store; nothing happens where it is there.

        Raises:
            Conflict: it is not whole, or its bytes are not those of the hash (it is gone then).
            StoreError: it cannot be stored.
        """
        async with self._writing.setdefault(sha256, asyncio.Lock()):
            stored = await self.size(sha256)
            if stored is not None:
                if stored != size:
                    raise Conflict(f"{sha256} has {stored} bytes, not {size}")
                return
            held = self._spool.partial_bytes(sha256)
            if held != size:
                raise Conflict(f"only {held} of {size} bytes have arrived")
            if not await asyncio.to_thread(self._spool.finish, sha256):
                raise Conflict(f"the content does not match {sha256}; upload it again")
            try:
                await obstore.put_async(
                    self._store,
                    _path(sha256),
                    self._spool.path(sha256),
                    use_multipart=size > 8 * PIECE_BYTES,
                    chunk_size=8 * PIECE_BYTES,
                    max_concurrency=_AT_ONCE,
                )
            except (BaseError, OSError) as error:
                raise StoreError(f"storage.packages: {_short(error)}") from None
            finally:
                await asyncio.to_thread(self._spool.remove, sha256)
            self.damaged.pop(sha256, None)
        self._writing.pop(sha256, None)

    async def read(self, sha256: str, offset: int = 0) -> AsyncIterator[bytes]:
        """The bytes of a file from an offset on, in pieces.

        Raises:
            NotFound: it is not there.
            StoreError: it cannot be read.
        """
        try:
            options: obstore.GetOptions = {"range": {"offset": offset}} if offset else {}
            found = await obstore.get_async(self._store, _path(sha256), options=options)
            async for piece in found.stream(min_chunk_size=PIECE_BYTES):
                yield bytes(piece)
        except FileNotFoundError:
            raise NotFound(f"there is no file {sha256}") from None
        except BaseError as error:
            raise StoreError(f"storage.packages: {_short(error)}") from None

    async def delete(self, sha256: str) -> None:
        """Remove a file.

        Raises:
            StoreError: it cannot be removed.
        """
        try:
            await obstore.delete_async(self._store, _path(sha256))
        except FileNotFoundError:
            return
        except BaseError as error:
            raise StoreError(f"storage.packages: {_short(error)}") from None


def _path(sha256: str) -> str:
    return f"sha256/{sha256[:2]}/{sha256}"


def _short(error: BaseException) -> str:
    """The first line of an error of the store; the rest holds addresses and headers."""
    return str(error).partition("\n")[0][:300]
