"""An agent that sends a heartbeat every two milliseconds, for a given time, and measures the answers.

Run it at real-time priority. It shares its core with a load client that receives two hundred megabytes, and should measure
the node, not the time that this client takes to read its sockets.

Usage: probe.py HOST:PORT SECONDS; prints {"n", "p99_ms", "max_ms"}.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time

from relay.pb.opamp.v1 import opamp_pb2 as pb

PAUSE_S = 0.002


def framed(message: pb.AgentToServer) -> bytes:
    payload = b"\0" + message.SerializeToString()
    assert len(payload) < 126
    return bytes([0x82, 0x80 | len(payload)]) + bytes(4) + payload


def main() -> None:
    host, _, port = sys.argv[1].partition(":")
    end = time.monotonic() + float(sys.argv[2])
    connection = socket.create_connection((host, int(port)))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    head = (
        f"GET /v1/opamp HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    connection.sendall(head.encode())
    connection.recv(4096)
    message = pb.AgentToServer(instance_uid=os.urandom(16), capabilities=1)
    message.agent_description.identifying_attributes.add(key="service.name").value.string_value = "probe"
    connection.sendall(framed(message))
    connection.recv(65536)
    message.ClearField("agent_description")
    latencies = []
    while time.monotonic() < end:
        message.sequence_num += 1
        data = framed(message)
        began = time.perf_counter()
        connection.sendall(data)
        connection.recv(65536)
        latencies.append((time.perf_counter() - began) * 1000)
        time.sleep(PAUSE_S)
    latencies.sort()
    print(json.dumps({"n": len(latencies), "p99_ms": latencies[int(len(latencies) * 0.99)], "max_ms": latencies[-1]}))


if __name__ == "__main__":
    main()
