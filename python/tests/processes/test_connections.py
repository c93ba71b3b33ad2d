"""Which worker gets a connection, and how many there may be."""

import contextlib
import os
import signal
import socket
from collections import Counter

import grpc
import pytest
from harness import LISTENING, PATIENCE, states_of_threads, wait_until

from .support import HOOK, ask, ask_once, connect


@pytest.mark.parametrize("clients", [8, 64])
def test_connections_are_spread_evenly(clients, serve):
    server = serve(workers=3)
    address = server.wait_up()
    with contextlib.ExitStack() as at_end:
        channels = [at_end.enter_context(connect(address)) for _ in range(clients)]
        counts = Counter(ask(channel)[0] for channel in channels)
        assert set(counts) == set(server.pids)
        assert max(counts.values()) - min(counts.values()) <= 2, counts


def test_connections_that_a_killed_worker_has_not_taken_go_to_others(serve):
    server = serve(workers=2)
    host, port = server.wait_up().split(":")
    stopped = server.pids[0]
    os.kill(stopped, signal.SIGSTOP)
    wait_until(lambda: set(states_of_threads(stopped)) == {"T"}, "a worker that stands still")
    with contextlib.ExitStack() as at_end:
        # Faster than it can be seen that one takes none.
        connections = [
            at_end.enter_context(socket.create_connection((host, int(port)), PATIENCE))
            for _ in range(20)
        ]
        os.kill(stopped, signal.SIGKILL)
        for connection in connections:
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        assert all(connection.recv(1) for connection in connections)
    assert server.stop() == 0


@pytest.mark.parametrize("limit", [None, 10])
def test_who_has_connected_when_the_server_stops_is_served(limit, serve):
    server = serve(workers=2, max_connections=limit)
    host, port = server.wait_up().split(":")
    server.process.send(signal.SIGSTOP)
    with contextlib.ExitStack() as at_end:
        # More than it takes before it looks at its signals.
        connections = [
            at_end.enter_context(socket.create_connection((host, int(port)), PATIENCE))
            for _ in range(100)
        ]
        for number in (signal.SIGTERM, signal.SIGCONT):
            server.process.send(number)
        for connection in connections:
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        assert all(connection.recv(1) for connection in connections)
    assert server.process.wait() == 0


# Lets a worker, which has some descriptors by now, open a few more.
_SCARCE = (
    HOOK
    + """
import resource

resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
"""
)


def serve_hook(serve, answer, hook):
    """Serve another hook than the first one, which a reload takes up."""
    server = serve()
    address = server.wait_up()
    server.write_hook(answer, hook)
    server.reload()
    return server, address


def test_workers_without_descriptors_leave_connections_waiting(serve):
    """Each keeps a reserve; those it has are served, and a line says why others wait."""
    server, address = serve_hook(serve, "scarce", _SCARCE)
    with contextlib.ExitStack() as at_end:
        first = at_end.enter_context(connect(address))
        assert ask(first)[1] == "scarce"
        crowd = [at_end.enter_context(connect(address)) for _ in range(160)]
        ready = [grpc.channel_ready_future(channel) for channel in crowd]
        server.process.wait_for("Accepting connections pauses: all but 16 of the 64 file")
        ask(first)
        assert sum(future.done() for future in ready) < 2 * (64 - 16)
        for channel in crowd[:120]:
            channel.close()
        ask(crowd[-1])
    assert server.stop() == 0


# Takes all descriptors but the reserve, and gives them back when it is told to.
_GREEDY = _SCARCE.replace(
    'elif verb == "grow":',
    """elif verb == "take":
            try:
                while True:
                    kept.append(open(os.devnull))
            except OSError:
                pass
        elif verb == "give":
            kept.clear()
        elif verb == "grow":""",
)


def test_connections_wait_while_servicers_have_all_descriptors(serve):
    """Also the first that comes then: a worker that waits for it would lose it to the kernel."""
    server, address = serve_hook(serve, "greedy", _GREEDY)
    with contextlib.ExitStack() as at_end:
        workers = {}
        while len(workers) < 2:
            channel = at_end.enter_context(connect(address))
            workers[ask(channel)[0]] = channel
        for channel in workers.values():
            assert ask(channel, "take")[1] == "greedy"
        crowd = [at_end.enter_context(connect(address)) for _ in range(4)]
        ready = [grpc.channel_ready_future(channel) for channel in crowd]
        server.process.wait_for("Accepting connections pauses")
        assert not any(future.done() for future in ready)
        for channel in workers.values():
            ask(channel, "give")
        for channel in crowd:
            assert ask(channel)[1] == "greedy"
    assert server.stop() == 0


def test_a_worker_without_descriptors_is_given_no_more_while_another_has_some(serve):
    server, address = serve_hook(serve, "greedy", _GREEDY)
    with contextlib.ExitStack() as at_end:
        full = at_end.enter_context(connect(address))
        while ask(full)[1] != "greedy":
            full = at_end.enter_context(connect(address))
        pid, _ = ask(full, "take")
        # One that waits with it tells.
        while True:
            channel = at_end.enter_context(connect(address))
            try:
                grpc.channel_ready_future(channel).result(timeout=1)
            except grpc.FutureTimeoutError:
                break
        for _ in range(12):
            assert ask(at_end.enter_context(connect(address)))[0] != pid
        ask(full, "give")
        assert ask(channel)[0] == pid

        def is_given_some():
            return ask(at_end.enter_context(connect(address)))[0] == pid

        wait_until(is_given_some, "the worker that has descriptors again")
    assert server.stop() == 0


def test_connections_that_have_gone_do_not_count(serve):
    server = serve()
    address = server.wait_up()
    with contextlib.ExitStack() as at_end:
        kept = [at_end.enter_context(connect(address)) for _ in range(8)]
        pids = [ask(channel)[0] for channel in kept]
        one = pids[0]
        for channel, pid in zip(kept, pids, strict=True):
            if pid == one:
                channel.close()

        def next_is_balanced():
            # The server may not have seen yet that they are gone.
            return ask_once(address)[0] == one

        wait_until(next_is_balanced, "the worker that has fewer")


def test_worker_that_has_many_calls_gets_fewer_connections(serve):
    server = serve()
    address = server.wait_up()
    with contextlib.ExitStack() as at_end:
        busy, *idle = [at_end.enter_context(connect(address)) for _ in range(4)]
        pid, _ = ask(busy)
        for channel in idle:
            ask(channel)

        def others_are_preferred():
            for _ in range(100):
                ask(busy)
            with connect(address) as first, connect(address) as second:
                return pid not in (ask(first)[0], ask(second)[0])

        # By their number alone each worker had one of the two.
        wait_until(others_are_preferred, "the worker with fewer calls")


@pytest.mark.parametrize("workers", [1, 2])
def test_connections_past_the_limit_wait_for_others_to_go(workers, serve):
    server = serve("--max-connections", "3", workers=workers)
    address = server.wait_up() if workers > 1 else port_of(server)
    with contextlib.ExitStack() as at_end:
        channels = [at_end.enter_context(connect(address)) for _ in range(3)]
        for channel in channels:
            ask(channel)
        host, port = address.split(":")
        late = at_end.enter_context(socket.create_connection((host, int(port))))
        late.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
        late.settimeout(0.5)
        with pytest.raises(TimeoutError):
            late.recv(1)
        assert ask(channels[2])[1] == "first", "those that are there are served"
        channels[0].close()
        late.settimeout(PATIENCE)
        assert late.recv(1), "it has been let in"
    assert server.stop() == 0


def port_of(server):
    return f"127.0.0.1:{server.process.wait_for(LISTENING).group(1)}"


def test_clients_that_come_and_go_leave_no_descriptor_behind(serve):
    server = serve()
    address = server.wait_up()
    ask_once(address)

    def descriptors():
        import os

        return len(os.listdir(f"/proc/{server.pid}/fd"))

    before = descriptors()
    for _ in range(200):
        host, port = address.split(":")
        socket.create_connection((host, int(port))).close()
    assert ask_once(address)[1] == "first"
    wait_until(lambda: descriptors() == before, "the parent to let go of them")
