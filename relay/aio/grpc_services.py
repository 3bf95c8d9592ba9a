"""The services that all our gRPC servers offer: health for probes, reflection for grpcurl."""

from __future__ import annotations

import grpc.aio
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection


def add_standard_services(server: grpc.aio.Server, service: str, *, reflects: bool = True) -> health.aio.HealthServicer:
    """Add health (SERVING from the start) and reflection for `service`; return the health servicer for the shutdown.

    Args:
        reflects: False to leave out reflection, where callers must authenticate.
    """
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    if reflects:
        names = (service, "grpc.health.v1.Health", reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
    return servicer
