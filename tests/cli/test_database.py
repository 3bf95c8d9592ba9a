"""Backup and restore on the command line."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.cli.run import run
from tests.cli.test_relay import plane_args_of, process


async def test_backup_while_running_and_second_process_is_refused(tmp_path: Path) -> None:
    data, archive = str(tmp_path / "plane"), str(tmp_path / "b.tar")
    async with process(*plane_args_of(tmp_path), "--link=127.0.0.1:0", "--api=127.0.0.1:0"):
        saved = await run("opamp-relay", "database", "backup", archive, "--data", data)
        assert saved.status == 0
        assert saved.err == f"its secrets open only with {data}/keys/master.key: keep a copy of that elsewhere\n"
        assert saved.out.endswith("0 package files; verified\n")
        second = await run("opamp-relay", *plane_args_of(tmp_path), "--link=127.0.0.1:0", "--api=127.0.0.1:0")
        assert second.status == 1
        assert (
            second.err.strip()
            .splitlines()[-1]
            .endswith(f"{data}: another process is using this data folder; each process needs its own")
        )
        refused = await run("opamp-relay", "database", "restore", archive, "--data", data)
        assert (refused.status, "is not empty" in refused.err) == (1, True)
    target = str(tmp_path / "new" / "plane")
    settings = tmp_path / "control-plane.yaml"
    await asyncio.to_thread(settings.write_text, f"data_dir: {target}\n")
    restored = await run("opamp-relay", "database", "restore", archive, "-c", str(settings))
    assert (restored.status, "epoch 2 begins" in restored.out) == (0, True)
    assert "before the start, put the master key at" in restored.err
    assert (await run("opamp-relay", "database", "backup", archive, "-c", str(settings))).status == 1
    other = str(tmp_path / "c.tar")
    assert (await run("opamp-relay", "database", "backup", other, "-c", str(settings))).status == 0


async def test_invalid_settings_exit_with_usage_error(tmp_path: Path) -> None:
    done = await run("opamp-relay", "database", "backup", "x", "-c", str(tmp_path / "none.yaml"))
    assert (done.status, "none.yaml" in done.err) == (2, True)


async def test_standalone_settings_locate_the_data(tmp_path: Path) -> None:
    settings = tmp_path / "s.yaml"
    await asyncio.to_thread(settings.write_text, f"data_dir: {tmp_path / 'data'}\nnode: {{region: eu}}\n")
    done = await run("opamp-relay", "database", "backup", str(tmp_path / "b.tar"), "-c", str(settings))
    assert (done.status, f"{tmp_path}/data/control-plane" in done.err) == (1, True)
