"""Package files at the control plane: resumable uploads, and the store.

An upload collects in a local folder. Once complete it is verified, then put into the store (a folder, S3, GCS, Azure) under
its SHA-256. Memory use does not depend on the file size: only the current piece is in memory.
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
_MAX_CONCURRENCY = 2
"""Concurrent parts of one upload to the store."""


def open_store(settings: PackageStorage, folder: Path) -> ObjectStore:
    """The store from the settings. Creates the folder of a local store.

    Raises:
        StoreError: it cannot be used.
    """
    config: dict[str, Any] = {name: value.get_secret_value() for name, value in settings.options.items()}
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
        spool: the folder for unfinished uploads.
        max_file_bytes: the largest file that is accepted.
    """

    def __init__(self, store: ObjectStore, spool: BlobStore, *, max_file_bytes: int) -> None:
        self._store = store
        self._spool = spool
        self._max_file_bytes = max_file_bytes
        self._writing: dict[str, asyncio.Lock] = {}
        self.damaged: dict[str, None] = {}
        """SHA-256 of files that were damaged and removed, until somebody pushes them again."""

    async def verify(self, sha256: str) -> None:
        """Read a whole file, and delete it if it does not match its hash: it would block a new upload.

        Raises:
            StoreError: the store cannot be read.
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
        """The size of a file in the store; None if it is missing.

        Raises:
            StoreError: the store cannot be read.
        """
        try:
            return int((await obstore.head_async(self._store, _path(sha256)))["size"])
        except FileNotFoundError:
            return None
        except BaseError as error:
            raise StoreError(f"storage.packages: {_short(error)}") from None

    async def received(self, sha256: str) -> tuple[int, bool]:
        """(bytes received so far, whether the file is already in the store)."""
        size = await self.size(sha256)
        return (size, True) if size is not None else (self._spool.partial_bytes(sha256), False)

    async def receive(self, sha256: str, offset: int, content: bytes) -> int:
        """Append the next piece of an upload. Returns the bytes received so far.

        Raises:
            Conflict: the offset is wrong, or the file is already stored. The message names the expected offset.
            TooLarge: the file would exceed the maximum size.
            StoreError: it cannot be written.
        """
        async with self._writing.setdefault(sha256, asyncio.Lock()):
            received = self._spool.partial_bytes(sha256)
            if not received and await self.size(sha256) is not None:
                raise Conflict(f"{sha256} has already been uploaded")
            if offset != received:
                raise Conflict(f"the upload continues at byte {received}, not {offset}")
            if received + len(content) > self._max_file_bytes:
                raise TooLarge(
                    f"a package file may be at most {self._max_file_bytes} bytes (storage.packages.max_file_bytes)"
                )
            # Abandoned uploads make room, the oldest first.
            if not await asyncio.to_thread(self._spool.make_room, len(content), {sha256}):
                raise StoreError("no space for uploads (storage.packages.max_bytes, .keep_free)")
            await asyncio.to_thread(self._spool.append, sha256, content)
            return received + len(content)

    async def finish(self, sha256: str, size: int) -> None:
        """Verify an upload and put it into the store. Does nothing if it is already there.

        Raises:
            Conflict: it is incomplete, or does not match its hash. On a mismatch the upload is deleted.
            StoreError: it cannot be stored.
        """
        async with self._writing.setdefault(sha256, asyncio.Lock()):
            stored = await self.size(sha256)
            if stored is not None:
                if stored != size:
                    raise Conflict(f"{sha256} has {stored} bytes, not {size}")
                return
            received = self._spool.partial_bytes(sha256)
            if received != size:
                raise Conflict(f"only {received} of {size} bytes have arrived")
            if not await asyncio.to_thread(self._spool.finish, sha256):
                raise Conflict(f"the content does not match {sha256}; upload it again")
            try:
                await obstore.put_async(
                    self._store,
                    _path(sha256),
                    self._spool.path(sha256),
                    use_multipart=size > 8 * PIECE_BYTES,
                    chunk_size=8 * PIECE_BYTES,
                    max_concurrency=_MAX_CONCURRENCY,
                )
            except (BaseError, OSError) as error:
                raise StoreError(f"storage.packages: {_short(error)}") from None
            finally:
                await asyncio.to_thread(self._spool.remove, sha256)
            self.damaged.pop(sha256, None)
        self._writing.pop(sha256, None)

    async def read(self, sha256: str, offset: int = 0) -> AsyncIterator[bytes]:
        """Read a file from an offset, in pieces.

        Raises:
            NotFound: it is missing.
            StoreError: it cannot be read.
        """
        try:
            options: obstore.GetOptions = {"range": {"offset": offset}} if offset else {}
            response = await obstore.get_async(self._store, _path(sha256), options=options)
            async for piece in response.stream(min_chunk_size=PIECE_BYTES):
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
    """The first line of a store error; the rest is addresses and headers."""
    return str(error).partition("\n")[0][:300]
