"""Serve a Django project's gRPC servicers: settings, command, signals, serializers."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("django-grpc-swift")
except PackageNotFoundError:  # imported from a source tree that was never installed
    __version__ = "0.0.0+unknown"
