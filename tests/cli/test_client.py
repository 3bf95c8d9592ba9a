import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from relay.cli.client import Api, RefusedByServer, Unreachable, api_of
from tests.cli.run import run


class Older(BaseHTTPRequestHandler):
    """A server that does not report its version and accepts every parameter."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"[1]")

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


@pytest.fixture
def older() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Older)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_filters_unknown_to_an_older_server_are_refused(older: str) -> None:
    assert Api(older).get("nodes") == [1]
    with pytest.raises(RefusedByServer, match="region: the server is older than this opampctl"):
        Api(older).get("agents", region="eu", status=None)


async def test_unreachable_server_exits_3() -> None:
    done = await run("opampctl", "get", "nodes", "--server", "http://127.0.0.1:1")
    assert done.status == 3
    assert done.err.startswith("cannot reach the server: http://127.0.0.1:1: ")


@pytest.mark.parametrize("name", ["名前", "a\nb"])
def test_actor_that_is_not_printable_ascii_is_refused(name: str) -> None:
    with pytest.raises(RefusedByServer, match="expected printable ASCII"):
        api_of("http://127.0.0.1:1", name)


def test_timeout_says_that_the_change_may_still_happen() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        api = Api(f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(Unreachable, match=r"no response within 0\.05 s; the request may still take effect"):
            api.post("apply", body={}, within_s=0.05)


def test_invalid_server_url_is_unreachable() -> None:
    with pytest.raises(Unreachable):
        Api("ftp://x")
