"""Which worker gets a connection."""

import socket
from collections.abc import Collection, Iterator

from django_grpc.processes.board import Board
from django_grpc.processes.process import WorkerProcess

#: Calls a second, over all workers, below which they weigh less and less: one call is no load.
_FEW_CALLS = 20.0


class Balancer:
    """Gives connections to the workers that have the least to do.

    A worker's load is its share of all connections plus its share of the calls that these are
    expected to carry, so that connections are even while nothing is known of their calls, and one
    that carries much counts for more later. HTTP/2 connections are few and last long, so this is
    worth more than a fair turn.
    """

    def __init__(self, board: Board) -> None:
        """Balance among nobody yet."""
        self._board = board
        self._given = 0

    def give(self, connection: socket.socket, workers: Collection[WorkerProcess]) -> bool:
        """Give a connection to one of the workers.

        Args:
            connection: The connection.
            workers: Those that serve.

        Returns:
            Whether one took it; the connection is closed here then. If not, each of them has as
            many waiting as its socket holds, or has ended.
        """
        for worker in self._by_load(workers):
            try:
                worker.give(connection)
            except OSError:  # its socket is full, or it has ended
                continue
            connection.close()
            self._given += 1
            worker.last_given = self._given
            return True
        return False

    def _by_load(self, serving: Collection[WorkerProcess]) -> Iterator[WorkerProcess]:
        connections = sum(it.open for it in serving) or 1
        known = sum(it.load.known for it in serving) or 1
        average = sum(it.load.calls for it in serving) / known
        calls = max(_FEW_CALLS, sum(it.load.expected(average) for it in serving))

        def load(worker: WorkerProcess) -> tuple[bool, bool, float, int]:
            share = worker.open / connections + worker.load.expected(average) / calls
            is_ready = self._board.figures.is_ready(worker.slot)
            # With one that is late it would wait; health checks may have turned one of them; of
            # equal ones each has its turn.
            return worker.is_late(), not is_ready, share, worker.last_given

        return iter(sorted(serving, key=load))


def accept(listening: socket.socket, most: int) -> Iterator[socket.socket]:
    """Accept the connections that wait on a socket that does not block.

    Args:
        listening: The socket.
        most: How many of them.

    Raises:
        OSError: No more can be opened.
    """
    for _ in range(most):
        try:
            yield listening.accept()[0]
        except BlockingIOError:
            return
        except ConnectionError:  # it has gone while it waited
            continue
