"""Everything that may happen to a server's processes, under a steady load.

A short form runs with the other tests; ``make chaos`` runs it for longer (``DJANGO_GRPC_CHAOS`` is
the number of rounds, ``DJANGO_GRPC_CHAOS_SEED`` begins another order).
"""

import contextlib
import os
import random
import resource
import signal
import time
import urllib.request

import grpc
import pytest
from harness import wait_until
from load import SteadyLoad
from sampleapp import helloworld_pb2

from .support import HOOK, METHOD, connect, free_port

pytestmark = pytest.mark.slow

ROUNDS = int(os.environ.get("DJANGO_GRPC_CHAOS", "1"))
SEED = int(os.environ.get("DJANGO_GRPC_CHAOS_SEED", "1"))

WORKERS = 3
#: Seconds for which a worker may hang in service.
TIMEOUT = 5
#: Seconds until all has to be well again, on a machine that does much else.
PATIENCE = 90
#: Seconds that a client takes to hear of a death, and those that its load begins calls ahead.
HEARING = 1.0

# Keeps the GIL for ever when it is asked to.
CODE = HOOK.replace(
    'elif verb == "grow":',
    """elif verb == "hold":
            import ctypes
            ctypes.PyDLL(None).sleep(1000)
        elif verb == "grow":""",
)
HANGING = "import ctypes\nctypes.PyDLL(None).sleep(1000)\n"
BROKEN = "raise ValueError('not like this')\n"


class Chaos:
    """A server, and what is done to it."""

    def __init__(self, server, address: str) -> None:
        self.server = server
        self.address = address
        self.random = random.Random(SEED)  # noqa: S311 - nothing is secret
        self.wanted = WORKERS
        self.version = 1
        self.outdated: set[int] = set()  # those with code of before
        #: When calls may be lost, as (from, to): those of what is killed.
        self.losses: list[tuple[float, float]] = []

    # Helpers

    def pids(self) -> list[int]:
        return self.server.pids

    def ask(self) -> tuple[int, str] | None:
        with connect(self.address) as channel:
            call = channel.unary_unary(
                METHOD, response_deserializer=helloworld_pb2.HelloReply.FromString
            )
            with contextlib.suppress(grpc.RpcError):
                text = call(b"", timeout=5, wait_for_ready=True).message
                pid, _, answer = text.partition(" ")
                return int(pid), answer
        return None

    def wait_whole(self) -> None:
        """Wait until as many workers as are wanted, and no others, serve the last code."""

        def is_whole() -> bool:
            pids = set(self.pids())
            if len(pids) != self.wanted or pids & self.outdated:
                return False
            answer = self.ask()
            return answer is not None and answer[0] in pids and answer[1] == str(self.version)

        wait_until(is_whole, f"{self.wanted} workers with code {self.version}", PATIENCE)

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.server.pid, number)

    def write_new_code(self) -> None:
        self.version += 1
        self.outdated = set(self.pids())
        self.server.write_hook(str(self.version), CODE)

    @contextlib.contextmanager
    def losing(self):
        begun = time.monotonic()
        yield
        self.losses.append((begun - 5, time.monotonic() + HEARING))

    # What happens

    def kill_one(self) -> None:
        with self.losing():
            os.kill(self.random.choice(self.pids()), signal.SIGKILL)

    def kill_all(self) -> None:
        with self.losing():
            for pid in self.pids():
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.2)
            wait_until(lambda: self.ask() is not None, "somebody who serves", PATIENCE)

    def terminate_one(self) -> None:
        os.kill(self.random.choice(self.pids()), signal.SIGTERM)

    def stop_one_for_a_moment(self) -> None:
        pid = self.random.choice(self.pids())
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.7)
        os.kill(pid, signal.SIGCONT)

    def stop_the_parent_while_one_drains(self) -> None:
        self.write_new_code()
        self.signal(signal.SIGHUP)
        for _ in range(8):
            self.signal(signal.SIGSTOP)
            time.sleep(0.4)
            self.signal(signal.SIGCONT)
            time.sleep(0.2)

    def reload(self) -> None:
        self.write_new_code()
        self.signal(signal.SIGHUP)

    def storm_of_reloads(self) -> None:
        self.write_new_code()
        for _ in range(20):
            self.signal(signal.SIGHUP)
            time.sleep(0.03)
            assert len(self.pids()) <= 3 * self.wanted + 4

    def broken_code(self) -> None:
        self.server.write_hook(None, BROKEN)
        self.signal(signal.SIGHUP)
        time.sleep(0.5)
        self.reload()

    def hanging_code(self) -> None:
        self.server.write_hook(None, HANGING)
        self.signal(signal.SIGHUP)
        time.sleep(1)
        self.reload()

    def hanging_code_and_a_death(self) -> None:
        self.server.write_hook(None, HANGING)
        self.signal(signal.SIGHUP)
        time.sleep(1)
        self.kill_one()
        time.sleep(0.5)
        self.reload()

    def more_and_fewer(self) -> None:
        for number in (signal.SIGTTIN, signal.SIGTTIN, signal.SIGTTOU, signal.SIGTTOU):
            self.signal(number)
            time.sleep(0.5)

    def hang_one(self) -> None:
        with self.losing():
            before = set(self.pids())
            with connect(self.address) as channel:
                call = channel.unary_unary(METHOD)
                request = helloworld_pb2.HelloRequest(name="hold").SerializeToString()
                with pytest.raises(grpc.RpcError):
                    call(request, timeout=60, wait_for_ready=True)
            wait_until(lambda: before - set(self.pids()), "its end", PATIENCE)

    def no_descriptors(self) -> None:
        pid = self.server.pid
        limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        count = len(os.listdir(f"/proc/{pid}/fd"))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (count, limits[1]))
        self.signal(signal.SIGHUP)
        time.sleep(0.5)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
        self.reload()

    def lose_the_output(self) -> None:
        """Have nobody read it any more: the next line is the last that is taken."""
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, self.server.process._process.stdout.fileno())
        os.close(null)
        self.reload()


EVENTS = [
    Chaos.kill_one,
    Chaos.terminate_one,
    Chaos.stop_one_for_a_moment,
    Chaos.stop_the_parent_while_one_drains,
    Chaos.reload,
    Chaos.storm_of_reloads,
    Chaos.broken_code,
    Chaos.hanging_code,
    Chaos.hanging_code_and_a_death,
    Chaos.more_and_fewer,
    Chaos.hang_one,
    Chaos.no_descriptors,
    Chaos.kill_all,
    Chaos.lose_the_output,
]


@pytest.mark.timeout(120 + 900 * ROUNDS)
def test_only_calls_of_what_is_killed_are_lost(serve, tmp_path):
    port = free_port()
    server = serve(
        workers=WORKERS,
        worker_timeout=TIMEOUT,
        grace=5,
        metrics=f"127.0.0.1:{port}",
    )
    server.write_hook("1", CODE)
    address = server.wait_up()
    chaos = Chaos(server, address)
    chaos.reload()
    chaos.wait_whole()
    request = helloworld_pb2.HelloRequest(name="x")
    with SteadyLoad(address, METHOD, request, rate=100, channels=6) as load:
        begun = time.monotonic()
        load.wait_for_calls(50)
        for _ in range(ROUNDS):
            events = EVENTS.copy()
            chaos.random.shuffle(events)
            for event in events:
                print(event.__name__, flush=True)  # for whoever looks for what went wrong
                event(chaos)
                chaos.wait_whole()
                load.wait_for_calls(20)
    lost = [
        it
        for it in load.failures
        if not any(first <= begun + it.begun <= last for first, last in chaos.losses)
    ]
    assert lost == []
    assert load.calls > 1000 * ROUNDS

    def counts() -> tuple[float, float]:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        return tuple(
            sum(float(it.rpartition(" ")[2]) for it in lines if it.startswith(f"{name}{{"))
            for name in ("grpc_server_started_total", "grpc_server_handled_total")
        )

    wait_until(lambda: len(set(counts())) == 1, "an account of every call")
    assert server.stop() == 0
