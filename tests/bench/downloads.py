"""Packages on the whole path: one fetch from the control plane, many downloads, compared with nginx and the same file."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from relay.pb.opamp.v1 import opamp_pb2 as pb
from tests.bench.probe import framed

HERE = Path(__file__).parent
SIZE = 50_000_000
AGENTS = 200
NGINX_PORT, NGINX_TLS_PORT = 4391, 4392
_CONF = """
{user}worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log; daemon off;
events {{ worker_connections 2048; }}
http {{
  access_log off; sendfile on; tcp_nopush on; default_type application/octet-stream;
  client_body_temp_path {folder}/t; proxy_temp_path {folder}/t; fastcgi_temp_path {folder}/t;
  uwsgi_temp_path {folder}/t; scgi_temp_path {folder}/t;
  server {{ listen 127.0.0.1:{plain}; root {folder}/www; }}
  server {{ listen 127.0.0.1:{tls} ssl; ssl_certificate {cert}; ssl_certificate_key {key}; root {folder}/www; }}
}}
"""


def push(file: Path) -> None:
    """Push the file, and assign it to every agent."""
    ctl = str(Path(sys.executable).parent / "opampctl")
    subprocess.run(
        [ctl, "package", "push", str(file), "--name", "bench", "--version", "v1"],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    assignment = (
        "apiVersion: opamp.io/v1\nkind: PackageAssignment\nmetadata: {name: bench}\n"
        "spec: {packages: [{name: bench, version: v1}]}\n"
    )
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as text:
        text.write(assignment)
        text.flush()
        subprocess.run([ctl, "apply", "-f", text.name], check=True, stdout=subprocess.DEVNULL)


def offered_url(port: int, secure: bool) -> str:
    """The download address that an agent is offered once the node has the file."""
    import ssl

    connection: socket.socket = socket.create_connection(("127.0.0.1", port), timeout=60)
    if secure:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = context.wrap_socket(connection)
    head = (
        f"GET /v1/opamp HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    connection.sendall(head.encode())
    connection.recv(4096)
    message = pb.AgentToServer(instance_uid=os.urandom(16), capabilities=0x19)
    message.agent_description.identifying_attributes.add(key="service.name").value.string_value = "b"
    connection.sendall(framed(message))
    read = b""
    while b"/v1/packages/" not in read or b"signature=" not in read.partition(b"/v1/packages/")[2]:
        read += connection.recv(65536)
    time.sleep(0.2)
    start = read.index(b"https://" if secure else b"http://")
    end = read.index(b"signature=", start) + len("signature=") + 64
    return read[start:end].decode()


def start(url: str, core: str) -> subprocess.Popen[str]:
    """Start the downloads of all agents."""
    command = [str(HERE / "bin" / "load"), "-mode", "download", "-agents", str(AGENTS), "-url", url]
    return subprocess.Popen(["taskset", "-c", core, *command], stdout=subprocess.PIPE, text=True)


def download(url: str, core: str) -> float:
    """Bytes per second of all agents together."""
    out, _ = start(url, core).communicate(timeout=300)
    result = json.loads(out.splitlines()[-1])
    assert (result["bytes"], result["failed"]) == (SIZE * AGENTS, 0), result
    return float(result["bytes"] / result["seconds"])


@contextmanager
def nginx(folder: Path, file: Path, cert: Path, key: Path, core: str) -> Iterator[bool]:
    """nginx serving the file, one worker on the node's core; yields False if it is not installed."""
    program = shutil.which("nginx")
    if program is None:
        yield False
        return
    (folder / "www").mkdir()
    os.link(file, folder / "www" / "file")
    conf = folder / "nginx.conf"
    user = "user root; " if os.geteuid() == 0 else ""  # otherwise it cannot read our folder
    conf.write_text(_CONF.format(user=user, folder=folder, plain=NGINX_PORT, tls=NGINX_TLS_PORT, cert=cert, key=key))
    process = subprocess.Popen(["taskset", "-c", core, program, "-c", str(conf)], stderr=subprocess.DEVNULL)
    time.sleep(0.5)
    try:
        yield True
    finally:
        process.terminate()
        process.wait()
