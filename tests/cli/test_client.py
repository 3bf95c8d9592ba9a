import pytest

from relay.cli.client import Api, Unreachable
from tests.cli.run import run


async def test_a_server_that_is_not_there_is_3() -> None:
    done = await run("opampctl", "get", "nodes", "--server", "http://127.0.0.1:1")
    assert done.status == 3
    assert done.err.startswith("cannot reach the server: http://127.0.0.1:1: ")


def test_what_is_no_server() -> None:
    with pytest.raises(Unreachable):
        Api("ftp://x")
