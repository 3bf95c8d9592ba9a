"""An agent on OpenTelemetry's Python client; it prints each event as a line of JSON."""

from __future__ import annotations

import json
import sys
from typing import Any

from opentelemetry._opamp.agent import OpAMPAgent
from opentelemetry._opamp.callbacks import OpAMPCallbacks
from opentelemetry._opamp.client import OpAMPClient
from opentelemetry._opamp.proto import opamp_pb2


def say(event: str, **more: str) -> None:
    print(json.dumps({"event": event, **more}), flush=True)


class Callbacks(OpAMPCallbacks):
    def on_message(self, agent: Any, client: Any, message: Any) -> None:
        if message.remote_config is None:
            return
        config_hash = message.remote_config.config_hash
        say("config", hash=config_hash.hex())
        applied = opamp_pb2.RemoteConfigStatuses.Value("RemoteConfigStatuses_APPLIED")
        status = client.update_remote_config_status(config_hash, applied)
        if status is not None:
            agent.send(client.build_remote_config_status_response_message(status))


def main() -> None:
    endpoint, name = sys.argv[1:]
    client = OpAMPClient(
        endpoint=endpoint,
        agent_identifying_attributes={"service.name": "python", "service.instance.id": name},
        agent_non_identifying_attributes={"tier": "production"},
    )
    agent = OpAMPAgent(interval=0.5, client=client, callbacks=Callbacks())
    agent.start()
    say("started")
    sys.stdin.read()
    agent.stop()


if __name__ == "__main__":
    main()
