"""A node joins its control plane, and finds back to it, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from relay.auth.join_tokens import read_join_token
from relay.control.app import ControlPlane
from relay.errors import SettingsError, StoreError
from relay.node.identity import Identity, IdentityFolder
from relay.node.joining import NotAdmitted, Renewal, identified
from relay.settings.programs import NodeSettings
from relay.testing.clock import ManualClock
from tests.conftest import Programs
from tests.control.actors import ANN
from tests.control.join.joining import identities, token, with_tls


def settings(folder: Path, **more: Any) -> NodeSettings:
    node = {"data_dir": str(folder), **more.pop("node", {})}
    return NodeSettings.model_validate({"node": node, **more})


async def join(
    folder: Path, text: str, written: Collection[str] = (), **more: Any
) -> tuple[NodeSettings, Identity | None]:
    async with asyncio.timeout(20):
        return await identified(settings(folder, **more), text, frozenset(written))


async def test_the_token_says_everything(programs: Programs, tmp_path: Path) -> None:
    plane = await with_tls(programs)
    found, identity = await join(tmp_path / "n", await token(plane))
    assert identity is not None
    assert found.node.region == identity.node.region == "eu"
    assert found.node.name == identity.node.name != "local-1"
    assert found.control_plane.endpoint == f"127.0.0.1:{plane.ports['link']}"
    again, same = await join(tmp_path / "n", "")
    assert (again, same) == (found, identity)
    named, _ = await join(tmp_path / "m", await token(plane, name="fixed"))
    assert named.node.name == "fixed"
    third, _ = await join(tmp_path / "o", await token(plane), ["node.name"], node={"name": "mine"})
    assert third.node.name == "mine"


async def test_token_in_a_file_and_no_token(programs: Programs, tmp_path: Path) -> None:
    plane = await with_tls(programs)
    (tmp_path / "token").write_text(f"{await token(plane)}\n")
    _, identity = await join(tmp_path / "n", "", control_plane={"join_token_file": str(tmp_path / "token")})
    assert identity is not None
    (tmp_path / "token").unlink()
    _, same = await join(tmp_path / "n", "", control_plane={"join_token_file": str(tmp_path / "token")})
    assert same == identity, "a node that has joined does not look at the file"
    found, none = await join(tmp_path / "m", "")
    assert (found, none) == (settings(tmp_path / "m"), None)
    with pytest.raises(SettingsError, match="No such file"):
        await join(tmp_path / "m", "", control_plane={"join_token_file": "/nowhere"})
    with pytest.raises(SettingsError, match="not a join token"):
        await join(tmp_path / "m", "opampj_x")


async def test_settings_that_contradict_the_identity(programs: Programs, tmp_path: Path) -> None:
    plane = await with_tls(programs)
    with pytest.raises(SettingsError, match="us contradicts the certificate of this node, which is for eu"):
        await join(tmp_path / "n", await token(plane), ["node.region"], node={"region": "us"})
    with pytest.raises(SettingsError, match="other contradicts"):
        await join(tmp_path / "n", "", ["node.name"], node={"name": "other"})
    found, _ = await join(tmp_path / "n", "", ["control_plane.endpoint"], control_plane={"endpoint": "192.0.2.1:1"})
    assert found.control_plane.endpoint == "192.0.2.1:1"


async def test_attack_impostor_at_the_join_port(programs: Programs, tmp_path: Path) -> None:
    plane = await with_tls(programs)
    impostor = await with_tls(programs, data_dir=str(tmp_path / "impostor"))
    wanted = read_join_token(await token(plane))
    lured = wanted._replace(join=f"127.0.0.1:{impostor.ports['join']}")
    with pytest.raises(NotAdmitted, match="this is not the control plane that made the join token"):
        await join(tmp_path / "n", lured.text())
    assert not (tmp_path / "n/identity/node.crt").exists()
    grants = identities(impostor).registry._ledger.state.join_grants
    assert not grants, "the secret was not sent to it"


async def test_attack_certificate_of_another_server(programs: Programs, tmp_path: Path) -> None:
    """The trust of the real one, relayed by somebody whose own certificate is not of its CA."""
    plane, impostor = await with_tls(programs), await with_tls(programs, data_dir=str(tmp_path / "impostor"))
    wanted = read_join_token(await token(plane))
    ledger = identities(impostor).trust._ledger
    relayed = dataclasses.replace(ledger.state.keys, key_sets=tuple(identities(plane).trust.key_sets))
    ledger.state = dataclasses.replace(ledger.state, keys=relayed)
    with pytest.raises(NotAdmitted, match="is not the control plane to trust"):
        await join(tmp_path / "n", wanted._replace(join=f"127.0.0.1:{impostor.ports['join']}").text())


async def test_node_with_a_wrong_clock_does_not_join(
    programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plane = await with_tls(programs)
    real = time.time
    for offset_s, word in ((360.0, "ahead of"), (-360.0, "behind")):
        monkeypatch.setattr("relay.node.joining.time.time", lambda offset_s=offset_s: real() + offset_s)
        with pytest.raises(NotAdmitted, match=rf"the clock of this node is 3(59|60) s {word} the control plane's"):
            await join(tmp_path / "n", await token(plane))


async def test_refused_token_ends_and_unreachable_port_waits(programs: Programs, tmp_path: Path) -> None:
    plane = await with_tls(programs)
    wanted = read_join_token(await token(plane))
    with pytest.raises(NotAdmitted, match="this join token is not accepted"):
        await join(tmp_path / "n", wanted._replace(secret="x").text())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    waiting = asyncio.ensure_future(join(tmp_path / "n", wanted._replace(join=f"127.0.0.1:{port}").text()))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    waiting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waiting


async def test_revoked_node_joins_again_with_another_key(programs: Programs, tmp_path: Path) -> None:
    plane = await with_tls(programs)
    _, first = await join(tmp_path / "n", await token(plane, name="one"))
    assert first is not None
    _, same = await join(tmp_path / "n", await token(plane, name="one"))
    assert same is not None
    assert same.node.key_digest == first.node.key_digest, "it has an identity, so the token is not looked at"
    await identities(plane).registry.revoke("eu/one", "stolen", actor=ANN)
    _, fresh = await join(tmp_path / "n", await token(plane, name="one"))
    assert fresh is not None
    assert fresh.node.key_digest != first.node.key_digest


async def test_attack_impostor_does_not_take_an_identity_away(programs: Programs, tmp_path: Path) -> None:
    plane = await with_tls(programs)
    _, first = await join(tmp_path / "n", await token(plane, name="one"))
    impostor = await with_tls(programs, data_dir=str(tmp_path / "impostor"))
    address = {"join_endpoint": f"127.0.0.1:{impostor.ports['join']}"}
    _, same = await join(tmp_path / "n", await token(plane, name="one"), control_plane=address)
    assert same == first
    text = await token(plane, name="one")
    await programs.stop(plane)
    _, still = await join(tmp_path / "n", text, control_plane=address)
    assert still == first


async def test_node_moves_to_the_control_plane_of_its_token(programs: Programs, tmp_path: Path) -> None:
    former, other = await with_tls(programs), await with_tls(programs, data_dir=str(tmp_path / "other"))
    _, first = await join(tmp_path / "n", await token(former, name="one"))
    settings, second = await join(tmp_path / "n", await token(other, name="one"))
    assert first is not None
    assert second is not None
    assert second.node.trust_domain == identities(other).trust.current.trust_domain != first.node.trust_domain
    assert settings.control_plane.endpoint == f"127.0.0.1:{other.ports['link']}"


async def test_attack_join_port_answers_with_garbage(programs: Programs, tmp_path: Path) -> None:
    """Anybody may answer in the place of a control plane that is away: the node goes on looking and renewing."""
    plane = await with_tls(programs)
    renewing, seen = await renewal(plane, tmp_path / "n", ManualClock(identities(plane)._clock.unix_ms()))

    async def fail(*_: object) -> object:
        raise RuntimeError("a new kind of garbage")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("relay.node.joining._call", fail)
        await renewing.look()
        assert not await renewing.renew()
        assert "a new kind of garbage" in renewing.problem
    assert await renewing.renew()
    assert len(seen) == 1


async def test_identity_stays_until_another_is_whole(programs: Programs, tmp_path: Path) -> None:
    plane = await with_tls(programs)
    _, first = await join(tmp_path / "n", await token(plane, name="one"))
    await identities(plane).registry.revoke("eu/one", "stolen", actor=ANN)
    with pytest.raises(NotAdmitted, match="not accepted"):
        await join(tmp_path / "n", read_join_token(await token(plane))._replace(secret="x").text())
    _, kept = await join(tmp_path / "n", "")
    assert kept == first


async def test_node_without_its_certificate_does_not_go_on_in_the_clear(programs: Programs, tmp_path: Path) -> None:
    plane = await with_tls(programs)
    await join(tmp_path / "n", await token(plane))
    (tmp_path / "n/identity/node.crt").unlink()
    with pytest.raises(StoreError, match="the certificate is gone: join again"):
        await join(tmp_path / "n", "")


@pytest.mark.parametrize("endpoint", ["nocolon", "127.0.0.1:99999", "h:1/@evil"])
async def test_token_with_an_odd_address(programs: Programs, tmp_path: Path, endpoint: str) -> None:
    plane = await with_tls(programs)
    odd = read_join_token(await token(plane))._replace(join=endpoint)
    with pytest.raises(SettingsError, match="is not HOST:PORT"):
        await join(tmp_path / "n", odd.text())


async def renewal(plane: ControlPlane, folder: Path, clock: ManualClock) -> tuple[Renewal, list[Identity]]:
    found, identity = await join(folder, await token(plane))
    assert identity is not None
    seen: list[Identity] = []
    endpoint = found.control_plane.join_endpoint
    assert endpoint is not None
    return Renewal(IdentityFolder(found.identity_dir), identity, endpoint, clock=clock, renewed=seen.append), seen


async def test_renewal(programs: Programs, tmp_path: Path) -> None:
    plane = await with_tls(programs)
    clock = ManualClock(identities(plane)._clock.unix_ms())
    renewing, seen = await renewal(plane, tmp_path / "n", clock)
    week_s = 7 * 86_400
    assert 0.56 * week_s < renewing.due_in_s() < 0.78 * week_s
    assert await renewing.renew()
    assert len(seen) == 1
    assert renewing.problem == ""
    clock.advance(week_s)
    assert renewing.due_in_s() == 0


async def test_renewal_that_fails_says_why(programs: Programs, tmp_path: Path) -> None:
    plane = await with_tls(programs)
    renewing, seen = await renewal(plane, tmp_path / "n", ManualClock(identities(plane)._clock.unix_ms()))
    (node_id,) = plane.ledger.state.joined_nodes
    await identities(plane).registry.revoke(node_id, "stolen", actor=ANN)
    assert not await renewing.renew()
    assert "join again, with a new token" in renewing.problem
    await programs.stop(plane)
    assert not await renewing.renew()
    assert "127.0.0.1" in renewing.problem
    assert seen == []


async def test_damaged_identity_is_not_joined_over(programs: Programs, tmp_path: Path) -> None:
    plane = await with_tls(programs)
    await join(tmp_path / "n", await token(plane))
    (tmp_path / "n/identity/node.crt").write_bytes(b"x")
    with pytest.raises(StoreError, match=r"node\.crt"):
        await join(tmp_path / "n", await token(plane))
