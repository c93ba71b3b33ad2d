"""A worker process: what it takes from its parent, and tells it."""

import contextlib
import dataclasses
import faulthandler
import signal
import socket
from typing import Any, Final

from django_grpc import conf, engine, greenlets
from django_grpc.lifecycle import threads
from django_grpc.lifecycle.place import STOPPED, Place, announce_shutdown
from django_grpc.lifecycle.process_end import end_process
from django_grpc.lifecycle.shutdown import ShutdownRequest
from django_grpc.log_lines import relieved_of_lines
from django_grpc.logs import GuardedLogger
from django_grpc.processes import prctl, protocol
from django_grpc.processes.board import Pulse
from django_grpc.processes.fleet import LEAVE_PATIENCE, MARGIN
from django_grpc.processes.protocol import Inheritance, Plan

logger = GuardedLogger("django_grpc.workers")

# What ends the wait when the parent has said so, or has ended.
_TOLD = "told by the supervisor"
_ORPHANED = "the supervisor has ended"

#: Seconds between two heartbeats.
_BEAT: Final = 0.5


class WorkerPlace(Place):
    """A place among others: connections come from the parent, which hears how the server fares."""

    is_worker = True

    def __init__(
        self, inheritance: Inheritance, shutdown: ShutdownRequest, address: tuple[str, int]
    ) -> None:
        """Take the place.

        Args:
            inheritance: What the parent left.
            shutdown: Is requested when the parent says so, or has ended.
            address: Where it would listen by the settings of now; the parent may have another.
        """
        self.is_first = inheritance.is_first
        self._inheritance = inheritance
        self._address = address
        self._shutdown = shutdown
        self._control = socket.socket(fileno=inheritance.control)
        self._control.settimeout(None)  # the settings may have changed the default
        self._pulse = Pulse(inheritance.board, inheritance.slot)
        self._server: Any = None
        self._config: conf.ServerConfig | None = None
        # It is the parent's to do something about it.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        # A terminal (stty tostop) stops who is in the background and writes to it.
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        if not faulthandler.is_enabled():  # Python was told not to look at its environment
            with contextlib.suppress(Exception):  # there may be no standard error
                faulthandler.enable()

    def configure(self, config: conf.ServerConfig) -> conf.ServerConfig:
        """Have the server count in the shared memory; the limit on connections is the parent's."""
        self._config = dataclasses.replace(config, host=self._address[0], port=self._address[1])
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
        self._pulse.beat()
        threads.start(self._live, name="grpcserver-pulse")
        threads.start(self._follow, name="grpcserver-control")
        # From here on it drains when its parent has ended; should Python not get to that, the
        # engine sees it (`OrphanWatch`).
        prctl.outlive_parent()
        if self._config is not None:
            plan = dataclasses.asdict(Plan.of(self._config))
            self._tell(protocol.READY, plan=plan)

    def stopping(self, reason: str) -> None:
        """Tell the parent; one that was told to end by others stays until nobody needs it."""
        if reason == STOPPED:
            self._tell(protocol.DRAINING)
        elif reason not in (_TOLD, _ORPHANED):
            self._tell(protocol.LEAVING)
            drain_delay = self._config.drain_delay if self._config is not None else 0
            # The parent is sooner, unless it hangs.
            self._shutdown.wait_again(LEAVE_PATIENCE + MARGIN + drain_delay)

    def _tell(self, event: str, **details: Any) -> None:
        try:
            protocol.send(self._control, event, **details)
        except OSError:
            self._shutdown.request(_ORPHANED)

    def _live(self) -> None:
        while True:
            self._pulse.beat()
            greenlets.sleep(_BEAT)

    def _follow(self) -> None:
        while (message := protocol.receive(self._control)) is not None:
            if message["event"] == protocol.ANNOUNCE:
                announce_shutdown(self._server)
            elif message["event"] == protocol.DRAIN:
                self._shutdown.request(_TOLD)
        _say_orphaned()
        self._shutdown.request(_ORPHANED)
        # Nobody else ends it, should it not get there.
        grace = self._config.grace if self._config is not None else 0
        end_process(1, grace + MARGIN)


def _say_orphaned() -> None:
    # In time for the log of a process that ends at once; a log handler may also wait for ever, for
    # what has gone with the parent.
    with relieved_of_lines():
        logger.warning("The parent of this worker process has ended: it drains, and ends too.")
