"""Processes that are forked from one that serves."""

import subprocess
import sys
import textwrap

import pytest

from .support import PATIENCE, ours_only

pytestmark = ours_only("the scripts have a server of ours")

HEAD = """
import asyncio, gc, multiprocessing, os, signal, socket, subprocess, sys, threading, time, warnings
from concurrent.futures import ThreadPoolExecutor
import grpc
from django_grpc import engine
from django_grpc.engine import aio

warnings.simplefilter("ignore", DeprecationWarning)  # of forks of processes with threads

def handlers(**methods):
    methods = {name: grpc.unary_unary_rpc_method_handler(it) for name, it in methods.items()}
    return (grpc.method_handlers_generic_handler("test.Forks", methods),)

def make(**methods):
    methods.setdefault("Echo", lambda request, context: request)
    server = engine.server(ThreadPoolExecutor(2), handlers=handlers(**methods))
    port = server.add_insecure_port("127.0.0.1:0")
    server.log_calls(lambda calls, dropped: None)
    server.watch_calls(100)
    return server, port

CLIENT = '''
import sys, grpc
with grpc.insecure_channel("127.0.0.1:" + sys.argv[1]) as channel:
    assert channel.unary_unary("/test.Forks/" + sys.argv[2])(b"x", timeout=20) == b"x"
'''

def call(port, method="Echo"):
    # In a process of its own: grpcio's channels do not survive a fork.
    import subprocess
    subprocess.run([sys.executable, "-c", CLIENT, str(port), method], check=True)

def ended(pid, seconds=20):
    give_up_at = time.monotonic() + seconds
    while time.monotonic() < give_up_at:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "goes on"
"""


def run(script):
    completed = subprocess.run(
        [sys.executable, "-c", HEAD + textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE,  # they start clients, one after the other
    )
    assert (completed.returncode, completed.stderr) == (0, "")


@pytest.mark.parametrize(
    "end",
    [
        "sys.exit(7)",
        "raise SystemExit(7)",
        "del server; gc.collect(); os._exit(7)",
        "del server; gc.collect(); sys.exit(7)",
        "server.stop(None).wait(); sys.exit(7)",
        "server.stop(0.1).wait(); server.stop(None); sys.exit(7)",
        "server.wait_for_termination(); sys.exit(7)",
        "server.cancel_all_calls(); server.drain(); server.statistics(); sys.exit(7)",
        "sys.exit(multiprocessing.Process(target=lambda: sys.exit(3)).start() or 7)",
    ],
)
@pytest.mark.parametrize("is_stopped", [False, True])
def test_a_child_ends_and_its_parent_serves_on(end, is_stopped):
    run(f"""
    server, port = make()
    server.start()
    call(port)
    if {is_stopped}:
        server.stop(None)
    pid = os.fork()
    if pid == 0:
        {end}
    assert ended(pid) == 7
    if not {is_stopped}:
        call(port)
    server.stop(None)
    """)


def test_a_child_may_have_a_server_of_its_own():
    run("""
    server, port = make()
    server.start()
    pid = os.fork()
    if pid == 0:
        own, own_port = make()
        own.start()
        call(own_port)
        call(port)  # the parent's
        grandchild = os.fork()
        if grandchild == 0:
            sys.exit(5)
        assert ended(grandchild) == 5
        call(own_port)
        own.stop(None)
        try:
            server.add_insecure_port("127.0.0.1:0")
        except RuntimeError as error:
            assert "forked from" in str(error)
            sys.exit(7)
    assert ended(pid) == 7
    call(port)
    """)


def test_a_server_that_is_started_in_the_child():
    run("""
    server, port = make()
    pid = os.fork()
    if pid == 0:
        server.start()
        call(port)
        server.stop(None)
        sys.exit(7)
    assert ended(pid) == 7
    server.start()
    call(port)
    """)


def test_a_process_of_multiprocessing_in_a_method():
    run("""
    def work():
        sys.exit(7)

    def fork(request, context):
        child = multiprocessing.get_context("fork").Process(target=work)
        child.start()
        child.join(10)
        return request if child.exitcode == 7 else b"goes on"

    async def fork_async(request, context):
        return fork(request, context)

    server, port = make(Fork=fork, ForkAsync=fork_async)
    server.start()
    for method in ("Fork", "ForkAsync", "Fork"):
        call(port, method)
    """)


@pytest.mark.parametrize(
    "end",
    [
        "await server.stop(None); os._exit(7)",
        "await server.stop(1); await server.wait_for_termination(); os._exit(7)",
        "await server.wait_for_termination(); os._exit(7)",
        "del server; gc.collect(); os._exit(7)",
    ],
)
def test_a_child_of_a_process_with_a_server_on_its_loop(end):
    run(f"""
    async def echo(request, context):
        return request

    async def main():
        server = aio.server(ThreadPoolExecutor(1), handlers=handlers(Echo=echo))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        await asyncio.to_thread(call, port)
        pid = os.fork()
        if pid == 0:
            {end}
        assert await asyncio.to_thread(ended, pid) == 7
        await asyncio.to_thread(call, port)
        await server.stop(None)

    asyncio.run(main())
    """)


def test_a_child_of_a_process_with_a_loop_on_another_thread():
    run("""
    def serve(ports):
        async def main():
            server = aio.server(ThreadPoolExecutor(1), handlers=handlers(Echo=echo))
            ports.append(server.add_insecure_port("127.0.0.1:0"))
            await server.start()
            is_up.set()
            await server.wait_for_termination()

        asyncio.run(main())

    async def echo(request, context):
        return request

    ports = []
    is_up = threading.Event()
    threading.Thread(target=serve, args=(ports,), daemon=True).start()
    is_up.wait()
    call(*ports)
    pid = os.fork()
    if pid == 0:
        sys.exit(7)
    assert ended(pid) == 7
    call(*ports)
    """)


def test_child_whose_threads_wait_for_each_other():
    """A lock that knew the thread which forked by its id would end the child."""
    run(
        """
        import resource
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

        def start_and_stop():
            for _ in range(20):
                server, port = make()
                server.start()
                server.stop(None)

        server, port = make()
        server.start()
        server.stop(None).wait()
        for _ in range(5):
            if (pid := os.fork()) == 0:
                beside = threading.Thread(target=start_and_stop, daemon=True)
                beside.start()
                start_and_stop()
                beside.join(20)
                os._exit(3 if beside.is_alive() else 0)
            assert ended(pid) == 0
        """
    )


def test_child_leaves_the_file_of_its_parents_socket(tmp_path):
    run(
        f"""
        address = "unix:{tmp_path}/socket"
        server, _ = make()
        server.add_insecure_port(address)
        if (pid := os.fork()) == 0:
            sys.exit(7)
        assert ended(pid) == 7
        server.start()
        with grpc.insecure_channel(address) as channel:
            assert channel.unary_unary("/test.Forks/Echo")(b"x", timeout=20) == b"x"
        server.stop(None).wait()
        assert not os.path.exists("{tmp_path}/socket")
        """
    )


def test_stop_of_one_child_leaves_the_socket_to_its_siblings():
    """A process binds, and each of its children serves what it bound."""
    run(
        """
        import struct

        def longest_queue():
            for name in os.listdir("/proc/self/fd"):
                try:
                    listener = socket.socket(fileno=os.dup(int(name)))
                except OSError:
                    continue
                with listener:
                    if listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                        # tcpi_sacked, which is this for a socket that listens; see tcp(7).
                        info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
                        return struct.unpack_from("I", info, 28)[0]

        server, port = make()
        if (pid := os.fork()) == 0:
            server.start()
            call(port)
            server.stop(None).wait()
            os._exit(7)
        assert ended(pid) == 7
        assert longest_queue() > 100
        if (pid := os.fork()) == 0:
            server.start()
            call(port)
            os._exit(7)
        assert ended(pid) == 7
        """
    )


@pytest.mark.parametrize("leave", ["return request", "sys.exit(3)", "1 / 0"])
def test_child_of_a_servicer_ends_when_it_has_done_its_work(leave):
    """It has no other thread, and nothing to wait for."""
    run(
        f"""
        import logging
        logging.disable()

        def fork(request, context):
            children.append(os.fork())
            if children[-1] == 0:
                {leave}
            return request

        children = []
        server, port = make(Fork=fork)
        server.start()
        call(port, "Fork")
        assert ended(children[0]) == 0
        call(port)
        server.stop(None).wait()
        """
    )


def test_child_of_a_servicer_that_streams_ends():
    """Its parent streams on; the child would wait for room, of which nobody here tells."""
    run(
        """
        def stream(request, context):
            if request == b"fork":
                children.append(os.fork())
            for _ in range(50):
                yield b"x" * 100_000

        children = []
        handler = grpc.unary_stream_rpc_method_handler(stream)
        generic = grpc.method_handlers_generic_handler("test.Forks", {"Stream": handler})
        server = engine.server(ThreadPoolExecutor(2), handlers=[generic])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        subprocess.run(
            [
                sys.executable,
                "-c",
                "import sys, grpc\\n"
                "with grpc.insecure_channel('127.0.0.1:' + sys.argv[1]) as channel:\\n"
                "    call = channel.unary_stream('/test.Forks/Stream')(b'fork', timeout=20)\\n"
                "    assert sum(map(len, call)) == 5_000_000\\n",
                str(port),
            ],
            check=True,
        )
        assert ended(children[0]) == 0
        server.stop(None).wait()
        """
    )


def test_child_of_an_async_servicer_ends():
    """It would take what is meant for its parent, from the epoll that they share."""
    run(
        """
        async def fork(request, context):
            children.append(os.fork())
            return request

        async def echo(request, context):
            return request

        children = []
        server, port = make(Fork=fork, Async=echo)
        server.start()
        call(port, "Fork")
        assert ended(children[0]) == 0
        for _ in range(3):
            call(port, "Async")
        server.stop(None).wait()
        """
    )
