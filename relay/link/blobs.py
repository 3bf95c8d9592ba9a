"""Fetch package files from the control plane, on a separate connection so that they do not delay policy or reports."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import grpc
import grpc.aio

from relay.errors import NotFound, UpstreamError
from relay.link.channel import Credentials, dial, plain
from relay.link.protocol.peer import Peer
from relay.pb.relay.v1 import link_pb2, link_pb2_grpc


class BlobSource:
    """The control plane's package files. Call `close` at the end."""

    def __init__(self, endpoint: str, peer: Peer, credentials: Credentials = plain) -> None:
        self._endpoint = endpoint
        self._credentials = credentials
        self._peer = peer
        self._channel: grpc.aio.Channel | None = None

    async def fetch(self, sha256: str, offset: int) -> AsyncGenerator[tuple[int, bytes], None]:
        """Yield (size of the whole file, next piece of it), starting at `offset`.

        Raises:
            NotFound: the control plane does not offer this file to this node.
            UpstreamError: the control plane cannot be reached, or the transfer broke off.
        """
        if self._channel is None:
            self._channel = dial(self._endpoint, self._credentials(), own_connection=True)
        stub = link_pb2_grpc.ControlPlaneStub(self._channel)
        request = link_pb2.BlobRequest(node=self._peer.message(), sha256=bytes.fromhex(sha256), offset=offset)
        call = stub.FetchBlob(request)
        try:
            async for chunk in call:
                yield chunk.total, chunk.data
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                raise NotFound(error.details() or "not found") from None
            raise UpstreamError(f"{error.code().name}: {error.details()}") from None
        finally:
            call.cancel()

    async def close(self) -> None:
        """Close the connection. The next fetch opens another one."""
        if self._channel is not None:
            await self._channel.close()
            self._channel = None
