import asyncio
import gzip
import io

import aiohttp
import pytest

from relay.errors import Malformed, Overloaded, TooLarge
from relay.ids import format_uid
from relay.opamp.body import FALLBACK_UID
from relay.pb.opamp.v1 import opamp_pb2 as pb
from relay.transport.http import Polling
from relay.transport.ports import CloseReason
from tests.transport.stand import stand
from tests.wire import hang_up

UID = bytes(range(16))
BODY = pb.AgentToServer(instance_uid=UID, sequence_num=1).SerializeToString()
PROTOBUF = {"Content-Type": "application/x-protobuf"}


async def post(port: int, data: object, **headers: str) -> tuple[int, dict[str, str], bytes]:
    sent = {**PROTOBUF, **{k.replace("_", "-"): v for k, v in headers.items()}}
    async with (
        aiohttp.ClientSession(auto_decompress=False) as client,
        client.post(f"http://127.0.0.1:{port}/v1/opamp", data=data, headers=sent) as answer,
    ):
        return answer.status, dict(answer.headers), await answer.read()


async def test_poll_is_answered() -> None:
    async with stand() as it:
        status, headers, content = await post(it.port, BODY)
        assert (status, headers["Content-Type"]) == (200, "application/x-protobuf")
        assert pb.ServerToAgent.FromString(content).instance_uid == UID
        assert it.agents.remotes[-1].startswith("127.0.0.1:")


async def test_bodies_may_be_chunked_and_gzipped() -> None:
    async def pieces():  # type: ignore[no-untyped-def]
        for i in range(0, len(BODY), 5):
            yield BODY[i : i + 5]

    async with stand() as it:
        assert (await post(it.port, pieces()))[0] == 200  # type: ignore[no-untyped-call]
        assert (await post(it.port, gzip.compress(BODY), Content_Encoding="gzip"))[0] == 200
        assert it.agents.received == [BODY, BODY]
        assert it.budget.used == 0


@pytest.mark.parametrize(
    ("accepts", "gzipped"), [("gzip", True), ("br, gzip;q=0.5", True), ("gzip;q=0", False), ("", False), ("*", True)]
)
async def test_large_answers_are_gzipped_on_request(accepts: str, gzipped: bool) -> None:
    async with stand() as it:
        it.agents.extra = b"\x1a\x90\x4e" + bytes(10_000)
        _, headers, content = await post(it.port, BODY, Accept_Encoding=accepts)
        assert (headers.get("Content-Encoding") == "gzip") is gzipped
        assert (gzip.decompress(content) if gzipped else content).endswith(it.agents.extra)


async def test_error_is_sent_with_200_and_a_valid_uid() -> None:
    async with stand() as it:
        for data, header, expected in (
            (b"\xff\xff", "", FALLBACK_UID),
            (b"", "", FALLBACK_UID),
            (b"\xff\xff", format_uid(UID), UID),
            (b"\x0a\x10" + UID + b"\xff", "", UID),
            (gzip.compress(b"\xff")[:-1], format_uid(UID), UID),
        ):
            encoding = "gzip" if data[:2] == b"\x1f\x8b" else "identity"
            status, _, content = await post(it.port, data, OpAMP_Instance_UID=header, Content_Encoding=encoding)
            answer = pb.ServerToAgent.FromString(content)
            assert (status, answer.instance_uid) == (200, expected)
            assert answer.error_response.type == pb.ServerErrorResponseType_BadRequest
        it.agents.error = Malformed("no")
        assert (await post(it.port, BODY))[0] == 200


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("GET", {}, 426),
        ("PUT", PROTOBUF, 405),
        ("DELETE", {}, 405),
        ("POST", {"Content-Type": "application/json"}, 415),
        ("POST", {**PROTOBUF, "Content-Encoding": "br"}, 415),
    ],
)
async def test_other_requests_get_a_helpful_error(method: str, headers: dict[str, str], status: int) -> None:
    async with stand() as it, aiohttp.ClientSession() as client:
        url = f"http://127.0.0.1:{it.port}/v1/opamp"
        async with client.request(method, url, headers=headers, data=b"x" if method == "POST" else None) as answer:
            assert answer.status == status


async def test_oversized_body_is_413_even_inflated_or_chunked() -> None:
    async def endless():  # type: ignore[no-untyped-def]
        for _ in range(40):
            yield bytes(100_000)

    async with stand(max_message_bytes=1 << 20) as it:
        bomb = gzip.compress(bytes(50_000_000))
        assert (await post(it.port, io.BytesIO(bytes(2 << 20))))[0] == 413
        assert (await post(it.port, bomb, Content_Encoding="gzip"))[0] == 413
        assert (await post(it.port, endless()))[0] == 413  # type: ignore[no-untyped-call]
        it.agents.error = TooLarge("x")
        assert (await post(it.port, BODY))[0] == 413
        assert it.budget.used == 0


async def test_overload_is_503_with_retry_after() -> None:
    async with stand(budget_bytes=10) as it:
        status, headers, _ = await post(it.port, BODY)
        assert status == 503
        it.budget.max_bytes = 1000
        it.agents.error = Overloaded("full", retry_after_s=30)
        status, headers, _ = await post(it.port, BODY)
        assert (status, headers["Retry-After"]) == (503, "30")


async def test_missing_body_times_out() -> None:
    async with stand(body_timeout_s=0.2) as it:
        reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
        head = (
            "POST /v1/opamp HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-protobuf\r\nContent-Length: 99\r\n\r\nab"
        )
        writer.write(head.encode())
        assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).startswith(b"HTTP/1.1 408")
        assert it.budget.used == 0
        await hang_up(writer)


async def test_one_connection_serves_many_polls() -> None:
    async with stand() as it, aiohttp.ClientSession(headers=PROTOBUF) as client:
        for _ in range(5):
            async with client.post(f"http://127.0.0.1:{it.port}/v1/opamp", data=BODY) as answer:
                assert answer.status == 200
        assert len(it.door.http.connections) == 1


def test_push_to_an_http_agent_is_impossible() -> None:
    polling = Polling()
    assert not polling.writable
    polling.close(CloseReason.DRAINING)
    polling.probe(0, 1, 1)
    polling.ping(lambda: None)
    with pytest.raises(AssertionError):
        polling.send(b"")


async def test_many_headers_are_accepted_and_bad_heads_answered() -> None:
    async with stand() as it:
        status, _, _ = await post(it.port, BODY, **{f"h{i}": "" for i in range(150)})
        assert status == 200
        reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
        writer.write(b"POST /v1/opamp HTTP/1.1\r\nHost: h\r\nBad Header: x\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(1000), 10)
        assert answer.split(b" ")[1] == b"400"
        assert b"Server: opamp-relay" in answer
        assert b"aiohttp" not in answer
        await hang_up(writer)
