"""Tests of the relay. They start child processes, and gRPC's fork handlers abort a child forked while streams are open."""

import os

os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
