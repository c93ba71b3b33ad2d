"""How long a health probe takes while the server has more to do than it can.

    python benchmarks/health.py [--seconds 10] [--rate 100]

A server of 8 workers that admits 200 calls at a time, a process that keeps all 200 of them in use
and has as many more refused, and this process, which asks for the health at a steady rate. The
calls differ: they wait (for a database, say), they compute in Python, or they keep the
interpreter's lock in C. The servicer of grpcio-health-checking on the same server is measured
beside it: it needs a worker, so it waits with everybody else, or is refused.

Times are from the moment at which a probe was due, so that a probe that was late counts as that.
"""

import argparse
import asyncio
import contextlib
import ctypes
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

WORKERS = 8
LIMIT = 200
#: A probe that takes longer has failed, as Kubernetes has it by default.
TIMEOUT = 1.0


def wait(request: bytes, _context: object) -> bytes:
    """Wait for 20 ms, as for a database."""
    time.sleep(0.02)
    return request


def compute(request: bytes, _context: object) -> bytes:
    """Compute for some 5 ms."""
    sum(number * number for number in range(50_000))
    return request


def hold(request: bytes, _context: object) -> bytes:
    """Keep the interpreter's lock for 200 ms, in C."""
    ctypes.PyDLL(None).usleep(200_000)
    return request


METHODS = {"none": None, "Wait": wait, "Compute": compute, "Hold": hold}


def serve(is_own: bool) -> None:
    """Serve until standard input ends."""
    from django_grpc import engine

    server = engine.server(ThreadPoolExecutor(WORKERS), maximum_concurrent_rpcs=LIMIT)
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(method)
        for name, method in METHODS.items()
        if method is not None
    }
    server.add_registered_method_handlers("bench.Load", handlers)
    if is_own:
        server.enable_health(max_queue_wait=3600)
    else:
        health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    sys.stdin.read()
    server.stop(0).wait()


async def load(port: int, method: str) -> None:
    """Keep the server full until standard input ends."""

    async def call_again_and_again() -> None:
        while True:
            try:
                await call(b"x" * 100)
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.05)

    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary(f"/bench.Load/{method}")
        tasks = [asyncio.create_task(call_again_and_again()) for _ in range(2 * LIMIT)]
        await asyncio.to_thread(sys.stdin.read)
        for task in tasks:
            task.cancel()


@contextlib.contextmanager
def process(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A process of this file, until the end of the block."""
    child = subprocess.Popen(
        [sys.executable, __file__, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield child
    finally:
        try:
            child.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()


def probe(port: int, seconds: float, rate: float) -> tuple[list[float], int]:
    """Ask at a steady rate; return the times in milliseconds, and how many probes failed."""
    times: list[float] = []
    failures = 0
    lock = threading.Lock()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        grpc.channel_ready_future(channel).result(timeout=10)
        due = time.perf_counter()
        calls = []
        for _ in range(int(seconds * rate)):
            due += 1 / rate
            time.sleep(max(0.0, due - time.perf_counter()))

            def note(call: grpc.Future, since: float = due) -> None:
                nonlocal failures
                taken = (time.perf_counter() - since) * 1000
                with lock:
                    if call.exception() is None:
                        times.append(taken)
                    else:
                        failures += 1

            call = check.future(health_pb2.HealthCheckRequest(), timeout=TIMEOUT)
            call.add_done_callback(note)
            calls.append(call)
        for call in calls:
            call.exception()
    return times, failures


def measure(seconds: float, rate: float) -> None:
    """Print a table."""
    print("| calls | health | probes | p50 | p99 | longest | failed |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for method in METHODS:
        for is_own in (True, False):
            with contextlib.ExitStack() as at_end:
                server = at_end.enter_context(process("serve", "own" if is_own else "servicer"))
                assert server.stdout is not None
                port = int(server.stdout.readline())
                if METHODS[method] is not None:
                    at_end.enter_context(process("load", str(port), method))
                    time.sleep(2)
                times, failures = probe(port, seconds, rate)
            name = "engine" if is_own else "servicer"
            if len(times) < 2:
                print(f"| {method} | {name} | {len(times) + failures} | | | | {failures} |")
                continue
            p99 = statistics.quantiles(times, n=100)[98]
            print(
                f"| {method} | {name} | {len(times) + failures} | {statistics.median(times):.2f} ms"
                f" | {p99:.2f} ms | {max(times):.2f} ms | {failures} |",
                flush=True,
            )


def main() -> None:
    """Run a part, or all of it."""
    match sys.argv[1:]:
        case ["serve", whose]:
            serve(whose == "own")
        case ["load", port, method]:
            asyncio.run(load(int(port), method))
        case _:
            parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
            parser.add_argument("--seconds", type=float, default=10)
            parser.add_argument("--rate", type=float, default=100, help="probes a second")
            arguments = parser.parse_args()
            measure(arguments.seconds, arguments.rate)


if __name__ == "__main__":
    main()
