from __future__ import annotations

import os
from pathlib import Path

import pytest

from relay.auth.secrets import TOKEN_FORM
from relay.control.access.roles import Role
from relay.control.credentials.admin_token import FILE, AdminToken, write_admin_token
from relay.control.credentials.tokens import TokenRegistry
from relay.control.ledger.ledger import Ledger
from relay.control.storage.database import Database
from relay.testing.clock import ManualClock
from tests.control.actors import ANN


class Stand:
    def __init__(self, folder: Path, database: Database, ledger: Ledger, clock: ManualClock) -> None:
        self.file, self.ledger, self.clock, self.database = folder / FILE, ledger, clock, database
        self.tokens = TokenRegistry(ledger)
        self.restart()

    def restart(self) -> None:
        self.token = AdminToken(self.file, self.database, self.ledger, self.tokens, clock=self.clock)

    def set_age(self, seconds: float) -> None:
        at = self.clock.unix_ms() / 1000 - seconds
        os.utime(self.file, (at, at))


@pytest.fixture
def stand(tmp_path: Path, database: Database, ledger: Ledger, clock: ManualClock) -> Stand:
    return Stand(tmp_path, database, ledger, clock)


async def test_first_start_writes_an_admins_token(stand: Stand) -> None:
    await stand.token.begin()
    assert stand.file.stat().st_mode & 0o777 == 0o600
    assert TOKEN_FORM.fits(stand.file.read_text().strip())
    (token,) = stand.ledger.state.tokens.values()
    assert (token.grant.role, token.owner, token.expires_ms) == (
        Role.ADMIN,
        "admin",
        stand.clock.unix_ms() + 86_400_000,
    )
    await stand.token.begin()
    assert len(stand.ledger.state.tokens) == 1


async def test_file_goes_with_its_token_and_is_not_written_again(stand: Stand) -> None:
    await stand.token.begin()
    stand.clock.advance(86_400)
    await stand.token.look()
    assert not stand.file.exists()
    stand.restart()
    await stand.token.begin()
    assert not stand.file.exists()


async def test_a_new_token_in_the_file_is_accepted_while_we_run(stand: Stand) -> None:
    await stand.token.begin()
    write_admin_token(stand.file)
    stand.set_age(0)
    await stand.token.look()
    assert len(stand.ledger.state.tokens) == 2


async def test_attack_deleted_token_comes_back(stand: Stand) -> None:
    await stand.token.begin()
    (token,) = stand.ledger.state.tokens.values()
    await stand.tokens.delete(token.id, actor=ANN)
    await stand.token.look()
    assert not stand.file.exists()
    assert stand.ledger.state.tokens == {}


async def test_old_or_odd_files_are_not_accepted(stand: Stand) -> None:
    write_admin_token(stand.file)
    stand.set_age(86_401)
    await stand.token.look()
    assert not stand.file.exists()
    stand.file.write_text("opampt_nonsense")
    await stand.token.look()
    await stand.token.look()
    assert stand.ledger.state.tokens == {}
    stand.file.unlink()
    stand.file.mkdir()
    await stand.token.look()
    assert stand.ledger.state.tokens == {}


async def test_attack_deleted_token_comes_back_after_a_kill(stand: Stand) -> None:
    await stand.token.begin()
    (token,) = stand.ledger.state.tokens.values()
    await stand.tokens.delete(token.id, actor=ANN)
    stand.restart()  # before the file was removed
    await stand.token.begin()
    assert stand.ledger.state.tokens == {}
    assert not stand.file.exists()


async def test_attack_links_pipes_and_large_files(stand: Stand, tmp_path: Path) -> None:
    write_admin_token(tmp_path / "elsewhere")
    stand.file.symlink_to(tmp_path / "elsewhere")
    await stand.token.look()
    stand.file.unlink()
    os.mkfifo(stand.file)
    await stand.token.look()
    stand.file.unlink()
    stand.file.write_text("x" * 10_000)
    await stand.token.look()
    assert stand.ledger.state.tokens == {}
