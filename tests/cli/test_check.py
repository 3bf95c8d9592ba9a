import asyncio
from pathlib import Path

from relay.cli.check import detect_program
from tests.cli.run import run

SHIPPED = Path(__file__).parent.parent.parent / "config"


async def test_shipped_settings_have_no_problems(tmp_path: Path) -> None:
    for name in ("relay.yaml", "control-plane.yaml"):
        text = (SHIPPED / name).read_text().replace("127.0.0.1:", "127.0.0.2:1")
        (tmp_path / name).write_text(text.replace("12:14330", "127.0.0.2:14330"))
        done = await run("opamp-relay", "check", "-c", str(tmp_path / name), cwd=tmp_path)
        assert done.status == 0, done.err
        assert f"({tmp_path / name}:" in done.out


async def test_folders_and_ports_are_checked(tmp_path: Path) -> None:
    server = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    (tmp_path / "file").write_text("")
    (tmp_path / "bad.pem").write_text("no certificate")
    config = tmp_path / "relay.yaml"
    config.write_text(
        f"node: {{data_dir: {tmp_path}/file/x}}\ncontrol_plane: {{}}\n"
        f"server: {{http: {{endpoint: '127.0.0.1:{port}'}}, "
        f"tls: {{enabled: true, cert_file: {tmp_path}/bad.pem, key_file: {tmp_path}/bad.pem}}}}\n"
    )
    done = await run("opamp-relay", "check", "-c", str(config))
    assert done.status == 2
    for part in ("node.data_dir", "is not a folder", "server.http.endpoint", "in use", "cannot be loaded"):
        assert part in done.err
    server.close()


async def test_unknown_program_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("{}")
    assert (await run("opamp-relay", "check", "--for", "toaster", "-c", str(tmp_path / "x.yaml"))).status == 2


def test_program_is_detected_from_its_keys(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    for text, program in (
        ("control_plane: {}", "node"),
        ("server: {link: {}}", "control-plane"),
        ("server: {link: {}, http: {}}", "standalone"),
        ("[]", "standalone"),
        ("a: [", "standalone"),
        ("", "standalone"),
    ):
        file.write_text(text)
        assert detect_program(file) == program
