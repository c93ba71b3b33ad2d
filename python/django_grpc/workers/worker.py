"""A worker process: what it takes from its parent, and tells it."""

import dataclasses
import signal
import socket
import threading
from typing import Any

from django_grpc import conf, engine
from django_grpc.management.serving import Place, announce_shutdown
from django_grpc.management.shutdown import ShutdownRequest
from django_grpc.workers import messages
from django_grpc.workers.messages import Inheritance, Plan

# What ends the wait when the parent has said so, or has ended.
_TOLD = "told by the supervisor"
_ORPHANED = "the supervisor has ended"


class WorkerPlace(Place):
    """A place among others: connections come from the parent, which hears how the server fares."""

    is_worker = True

    def __init__(self, inheritance: Inheritance, shutdown: ShutdownRequest) -> None:
        """Take the place.

        Args:
            inheritance: What the parent left.
            shutdown: Is requested when the parent says so, or has ended.
        """
        self.is_first = inheritance.is_first
        self._inheritance = inheritance
        self._shutdown = shutdown
        self._control = socket.socket(fileno=inheritance.control)
        self._server: Any = None
        self._config: conf.ServerConfig | None = None
        # It is the parent's to do something about it.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def configure(self, config: conf.ServerConfig) -> conf.ServerConfig:
        """Have the server count in the shared memory; the limit on connections is the parent's."""
        self._config = config
        shared = (
            ("django_grpc.statistics_descriptor", self._inheritance.board),
            ("django_grpc.statistics_slot", self._inheritance.slot),
        )
        return dataclasses.replace(config, max_connections=None, options=(*shared, *config.options))

    def listen(
        self, server: Any, config: conf.ServerConfig, credentials: engine.ServerCredentials | None
    ) -> str:
        """Take the connections that the parent gives, and serve metrics where it listens."""
        self._server = server
        server.adopt_connections(self._inheritance.intake, self._inheritance.released, credentials)
        for descriptor in self._inheritance.metrics:
            server.add_metrics_port(f"fd:{descriptor}")
        return self._inheritance.address

    def started(self) -> None:
        """Tell the parent, and hear what it says from now on."""
        threading.Thread(target=self._follow, name="grpcserver-control", daemon=True).start()
        if self._config is not None:
            plan = dataclasses.asdict(Plan.of(self._config))
            self._tell(messages.READY, plan=plan)

    def stopping(self, reason: str) -> None:
        """Tell the parent, so that it gives no more connections and has others in their stead."""
        if reason not in (_TOLD, _ORPHANED):
            self._tell(messages.DRAINING)

    def _tell(self, event: str, **details: Any) -> None:
        try:
            messages.send(self._control, event, **details)
        except OSError:
            self._shutdown.request(_ORPHANED)

    def _follow(self) -> None:
        while (message := messages.receive(self._control)) is not None:
            if message["event"] == messages.ANNOUNCE:
                announce_shutdown(self._server)
            elif message["event"] == messages.DRAIN:
                self._shutdown.request(_TOLD)
        self._shutdown.request(_ORPHANED)
