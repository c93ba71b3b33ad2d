"""Making a server from `settings.GRPCSERVER`: one module for each thing that it is made of."""

from django_grpc.building.credentials import load_credentials, renew_credentials
from django_grpc.building.interceptors import load_instruments, load_interceptors
from django_grpc.building.methods import check_behaviors, check_methods
from django_grpc.building.ports import bind, bind_metrics
from django_grpc.building.servers import build_server, create_server, loop_factory
from django_grpc.building.servicers import add_servicers, enable_reflection

__all__ = [
    "add_servicers",
    "bind",
    "bind_metrics",
    "build_server",
    "check_behaviors",
    "check_methods",
    "create_server",
    "enable_reflection",
    "load_credentials",
    "load_instruments",
    "load_interceptors",
    "loop_factory",
    "renew_credentials",
]
