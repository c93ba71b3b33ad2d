"""Where a process that serves stands: alone, or as one of several."""

import abc
from typing import Any, Final

from django_grpc import conf, engine

#: What ends the wait when the server was stopped by something else than the command.
STOPPED: Final = "stopped"


def announce_shutdown(server: Any) -> None:
    """Have the health service say NOT_SERVING, while calls are served as ever.

    This is the one place where it is called: at the beginning of ``drain_delay``, by a process that
    serves alone, and by each worker when its parent says so.
    """
    server.announce_shutdown()


class Place(abc.ABC):
    """Where a server gets its connections from, and who hears how it fares.

    Attributes:
        is_worker: Whether this process is one of several, whose parent speaks for all.
        is_first: Whether it is the one that runs the checks.
    """

    is_worker = False
    is_first = True

    def configure(self, config: conf.ServerConfig) -> conf.ServerConfig:
        """Change the settings to what suits the place."""
        return config

    @abc.abstractmethod
    def listen(
        self, server: Any, config: conf.ServerConfig, credentials: engine.ServerCredentials | None
    ) -> str:
        """Give a server its sockets, and return the address.

        Raises:
            CommandError: It can't be listened on.
        """

    @abc.abstractmethod
    def started(self) -> None:
        """Hear that the server serves."""

    @abc.abstractmethod
    def stopping(self, reason: str) -> None:
        """Hear that the server is going to drain, and why."""
