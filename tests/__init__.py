"""Tests start programs as child processes, and gRPC's fork handlers abort a child that is forked while streams are up."""

import os

os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
