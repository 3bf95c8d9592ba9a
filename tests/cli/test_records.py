from __future__ import annotations

from tests.cli.test_opampctl import Desk, desk
from tests.conftest import TEMPLATE, assignment

__all__ = ["desk"]


async def test_history_and_audit(desk: Desk) -> None:
    await desk.ctl("apply", "-f", desk.file("a.yaml", TEMPLATE + assignment("a")), "--as", "ann")
    await desk.ctl("apply", "-f", desk.file("b.yaml", assignment("a", rate=2)), "--as", "bob")
    history = await desk.ctl("history", "assignment", "a")
    assert "a-1" in history.out
    assert "bob" in history.out
    assert '"name": "a-2"' in (await desk.ctl("history", "assignment", "a", "-o", "json")).out
    assert (await desk.ctl("history", "assignment", "b")).status == 1
    audit = await desk.ctl("audit", "--since", "1h", "--actor", "bob", "-o", "json")
    assert '"subject": "ConfigAssignment/a"' in audit.out
    assert "ann" not in audit.out
    assert "ann" in (await desk.ctl("audit", "--since", "2026-01-01")).out
    assert (await desk.ctl("audit", "--since", "yesterday")).status == 2
    assert "whole" in (await desk.ctl("audit", "verify")).out
