"""That `manage.py grpcserver` ends when it is told to, whatever goes on in it."""

import re
import signal
import socket
import subprocess
import sys
import textwrap

import grpc
import pytest
from django.core.management.base import CommandError
from harness import LISTENING, PATIENCE, eventually, listening, say_hello

from django_grpc.lifecycle.shutdown import StoppedAtStart
from django_grpc.management.commands.grpcserver import Command

MODULE = """
    import asyncio, atexit, sys, threading, time
    import grpc
    from asgiref.sync import sync_to_async
    from django_grpc.signals import grpc_request_finished, grpc_request_started, grpc_shutdown

    def say_shutdown(**kwargs):
        print("grpc_shutdown was sent", flush=True)

    grpc_shutdown.connect(say_shutdown, weak=False)

    async def sleep_in_thread(request, context):
        print("begun", flush=True)
        await asyncio.to_thread(time.sleep, 1000)

    async def ignore(request, context):
        print("begun", flush=True)
        while True:
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                pass

    async def leave_ignoring(request, context):
        global task
        task = asyncio.create_task(ignore(request, context))
        await asyncio.sleep(0)
        return b""

    async def leave_stopping(request, context):
        async def stop_loop_when_cancelled():
            print("begun", flush=True)
            try:
                await asyncio.sleep(1000)
            finally:
                asyncio.get_running_loop().stop()

        global task
        task = asyncio.create_task(stop_loop_when_cancelled())
        await asyncio.sleep(0)
        return b""

    async def leave_thread(request, context):
        global task
        task = asyncio.create_task(sleep_in_thread(request, context))
        await asyncio.sleep(0)
        return b""

    async def iterate_for_ever():
        try:
            yield 1
        finally:
            await asyncio.sleep(1000)

    async def leave_generator(request, context):
        global generator
        generator = iterate_for_ever()
        await anext(generator)
        print("begun", flush=True)
        return b""

    def block_loop_later(request, context):
        print("begun", flush=True)
        while context.is_active():
            time.sleep(0.01)
        loop.call_soon_threadsafe(loop.call_later, 0.5, time.sleep, 1000)
        time.sleep(1.5)
        return b""

    def block_loop_for_a_while(request, context):
        print("begun", flush=True)
        while context.is_active():
            time.sleep(0.01)
        loop.call_soon_threadsafe(loop.call_later, 0.2, time.sleep, 5)
        time.sleep(1)
        print("came to its end", flush=True)
        return b""

    async def note_loop(request, context):
        global loop
        loop = asyncio.get_running_loop()
        return b""

    async def block_loop(request, context):
        print("begun", flush=True)
        time.sleep(1000)

    async def block():
        try:
            await asyncio.sleep(1000)
        finally:
            time.sleep(1000)

    async def flush():
        try:
            await asyncio.sleep(1000)
        finally:
            time.sleep(6)
            print("flushed", flush=True)

    async def leave(work):
        global task
        task = asyncio.create_task(work)
        await asyncio.sleep(0)
        print("begun", flush=True)
        return b""

    async def leave_flushing(request, context):
        return await leave(flush())

    async def leave_blocking(request, context):
        return await leave(block())

    async def block_loop_and_receiver(request, context):
        running = asyncio.get_running_loop()

        def close(**kwargs):
            asyncio.run_coroutine_threadsafe(asyncio.sleep(0), running).result()

        grpc_shutdown.connect(close, weak=False)
        await block_loop(request, context)

    def start_thread(request, context):
        threading.Thread(target=time.sleep, args=(1000,)).start()
        print("begun", flush=True)
        return b""

    def outlast_call(request, context):
        print("begun", flush=True)
        while context.is_active():
            time.sleep(0.01)
        time.sleep(1)
        print("came to its end", flush=True)
        return b""

    async def outlast_call_in_thread(request, context):
        await sync_to_async(outlast_call)(request, context)

    async def outlast_call_on_loop(request, context):
        print("begun", flush=True)
        try:
            await asyncio.sleep(1000)
        finally:
            await asyncio.sleep(2.5)
            print("came to its end", flush=True)

    def hang_in_callback(request, context):
        context.add_callback(lambda: time.sleep(1000))
        print("begun", flush=True)
        return b""

    def hang(request, context):
        print("begun", flush=True)
        time.sleep(1000)

    def take_time_at_exit(request, context):
        @atexit.register
        def write():
            time.sleep(2.5)
            print("written", flush=True)
        print("begun", flush=True)
        return b""

    def stay_at_exit(request, context):
        @atexit.register
        def flush():
            print("flushing", flush=True)
            time.sleep(1000)
        return b""

    async def leave_raising(request, context):
        async def leave():
            try:
                await asyncio.sleep(1000)
            finally:
                raise SystemExit(5)
        global task
        task = asyncio.create_task(leave())
        await asyncio.sleep(0)
        print("begun", flush=True)
        return b""

    async def stop_server(request, context):
        global stopping
        stopping = asyncio.create_task(served.server.stop(1))
        return b""

    async def stop_loop(request, context):
        asyncio.get_running_loop().stop()
        return b""

    async def leave_by_exit(request, context):
        def leave():
            raise SystemExit(5)
        asyncio.get_running_loop().call_soon(leave)
        return b""

    def blocking_hook(server):
        async def begin():
            global task
            task = asyncio.create_task(block())
            await asyncio.sleep(0)
        global beginning
        beginning = asyncio.get_running_loop().create_task(begin())
        grpc_hook(server)

    def grpc_hook(server):
        global served
        served = server
        methods = (
            leave_raising, leave_stopping, stop_server, stop_loop, leave_by_exit,
            sleep_in_thread, ignore, leave_ignoring, leave_thread, leave_generator, block_loop,
            start_thread, take_time_at_exit, stay_at_exit, outlast_call, hang, hang_in_callback,
            note_loop, block_loop_later, leave_blocking, block_loop_and_receiver,
            leave_flushing, block_loop_for_a_while, outlast_call_in_thread, outlast_call_on_loop,
        )
        server.add_registered_method_handlers(
            "test.Endless", {it.__name__: grpc.unary_unary_rpc_method_handler(it) for it in methods}
        )
"""

SCRIPT = """
import sys
import django
from django.core.management import call_command

django.setup()
call_command("grpcserver", *sys.argv[1:])
"""


@pytest.fixture
def start_endless(start, tmp_path):
    """Start a server with the methods above."""

    def run(*arguments, **setting):
        (tmp_path / "endless.py").write_text(textwrap.dedent(MODULE))
        return start(
            "--port", "0", "--grace", "0.5", *arguments, servicers=["endless.grpc_hook"], **setting
        )

    return run


@pytest.fixture
def stop_during(start_endless):
    """Start a server, stop it with SIGTERM while a method runs or has run, and return its end."""

    def run(method, *arguments, is_over=False, **setting):
        process = start_endless(*arguments, **setting)
        port = process.wait_for(LISTENING).group(1)
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            channel.unary_unary("/test.Endless/note_loop")(b"", timeout=PATIENCE)
            call = channel.unary_unary(f"/test.Endless/{method}").future(b"", timeout=PATIENCE)
            process.wait_for("begun")
            if is_over:
                call.cancel()
            process.send(signal.SIGTERM)
            assert eventually(call.done)
            assert process.wait() == 0
        return process

    return run


@pytest.mark.parametrize("arguments", [(), ("--workers", "2"), ("--autoreload",)])
@pytest.mark.parametrize("method", ["sleep_in_thread", "ignore"])
@pytest.mark.parametrize("is_async", [True, False])
def test_a_call_that_ignores_its_cancellation(stop_during, method, arguments, is_async):
    process = stop_during(method, *arguments, **{"async": is_async})
    assert "grpc_shutdown was sent" in process.output
    assert "Graceful shutdown completed" in process.output


def test_a_call_that_ignores_its_cancellation_on_uvloop(stop_during):
    options = [("django_grpc.uvloop", 1)]
    for method in ("sleep_in_thread", "ignore", "leave_generator"):
        stop_during(method, **{"async": True, "options": options})


@pytest.mark.parametrize("method", ["leave_ignoring", "leave_thread", "leave_generator"])
@pytest.mark.parametrize("is_async", [True, False])
def test_what_a_call_has_left_on_the_loop(stop_during, method, is_async):
    stop_during(method, **{"async": is_async})


@pytest.mark.parametrize("arguments", [(), ("--autoreload",)])
def test_a_method_that_blocks_the_loop(stop_during, arguments):
    process = stop_during("block_loop", *arguments, **{"async": True})
    assert "An async method blocks the event loop" in process.output
    assert "grpc_shutdown was sent" in process.output


def test_a_task_that_blocks_the_loop_when_it_is_cancelled(stop_during):
    process = stop_during("leave_blocking", **{"async": True})
    assert "An async method blocks the event loop" in process.output
    assert "Graceful shutdown completed" in process.output


def test_a_task_that_blocks_the_loop_within_the_grace_when_it_is_cancelled(stop_during):
    """And for longer than it would have without one."""
    arguments = ("--grace", str(PATIENCE))
    process = stop_during("leave_flushing", *arguments, **{"async": True})
    assert "flushed" in process.output


@pytest.mark.parametrize("arguments", [("--metrics", "127.0.0.1:{taken}"), ("--list-handlers",)])
def test_a_task_that_blocks_the_loop_after_a_start_that_fails(start, tmp_path, arguments):
    (tmp_path / "endless.py").write_text(textwrap.dedent(MODULE))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        arguments = [it.format(taken=taken.getsockname()[1]) for it in arguments]
        hooks = ["endless.blocking_hook"]
        process = start("--port", "0", *arguments, servicers=hooks, **{"async": True})
        status = process.wait()
    assert status == (0 if "--list-handlers" in arguments else 1)
    assert ("CommandError: Metrics can't be served" in process.output) == (status == 1)
    assert "An async method blocks the event loop, or a task does" in process.output


def test_a_task_that_leaves_when_it_is_cancelled(stop_during):
    process = stop_during("leave_raising", **{"async": True})
    assert "A task that was left at the end has raised SystemExit(5)" in process.output


@pytest.mark.parametrize(
    ("method", "status"), [("stop_server", 0), ("stop_loop", 1), ("leave_by_exit", 5)]
)
@pytest.mark.parametrize("script", [None, SCRIPT])
def test_an_end_that_comes_from_within(start_endless, method, status, script):
    """Nothing waits for a signal any more, and the project is told."""
    process = start_endless(script=script, **{"async": True})
    port = process.wait_for(LISTENING).group(1)
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary(f"/test.Endless/{method}").future(b"", timeout=PATIENCE)
        assert process.wait() == status
        assert eventually(call.done)
    assert process.output.count("grpc_shutdown was sent") == 1


@pytest.mark.parametrize("is_async", [True, False])
def test_an_on_listening_that_raises_leaves_no_server(start_endless, is_async):
    script = """
import socket, sys, threading
import django

django.setup()
from django.core.management import call_command
from django_grpc.management.commands import grpcserver

class Command(grpcserver.Command):
    def on_listening(self, server, config, address, **options):
        self.address = address
        raise ValueError("no")

command = Command()
try:
    call_command(command, *sys.argv[1:])
except ValueError:
    host, _, port = command.address.rpartition(":")
    print("refused", socket.socket().connect_ex((host, int(port))) != 0)
    for thread in threading.enumerate():
        if "grpc" in thread.name:
            thread.join(10)
    print([it.name for it in threading.enumerate() if "grpc" in it.name])
"""
    process = start_endless(script=script, **{"async": is_async})
    assert process.wait() == 0
    assert process.output.rstrip().endswith("refused True\n[]")


def test_a_receiver_that_waits_for_a_blocked_loop(stop_during):
    process = stop_during("block_loop_and_receiver", **{"async": True})
    assert process.output.count("grpc_shutdown was sent") == 1


@pytest.mark.parametrize("arguments", [(), ("--workers", "2")])
@pytest.mark.parametrize("is_async", [True, False])
@pytest.mark.parametrize("where", ["", "_in_thread", "_on_loop"])
def test_a_method_whose_call_is_over_is_not_cut_in_the_middle(
    stop_during, where, arguments, is_async
):
    arguments = (*arguments, "--grace", str(PATIENCE))
    process = stop_during(f"outlast_call{where}", *arguments, is_over=True, **{"async": is_async})
    assert process.output.index("came to its end") < process.output.rindex("grpc_shutdown was sent")


def test_a_loop_that_is_blocked_while_a_method_comes_to_its_end(stop_during):
    process = stop_during("block_loop_later", "--grace", "2", is_over=True, **{"async": True})
    assert "An async method blocks the event loop" in process.output
    assert process.output.count("grpc_shutdown was sent") == 1


def test_a_loop_that_is_blocked_within_the_grace(stop_during):
    """And for longer than it has to take a turn in."""
    process = stop_during(
        "block_loop_for_a_while", "--grace", str(PATIENCE), is_over=True, **{"async": True}
    )
    assert "blocks the event loop" not in process.output
    assert process.output.index("came to its end") < process.output.rindex("grpc_shutdown was sent")


def test_a_script_whose_loop_is_blocked_hears_of_the_end(stop_during):
    process = stop_during(
        "block_loop_for_a_while", "--grace", "2", is_over=True, script=SCRIPT, **{"async": True}
    )
    assert "blocks the event loop" in process.output
    assert process.output.count("grpc_shutdown was sent") == 1
    assert "Graceful shutdown completed" in process.output


@pytest.mark.parametrize("is_over", [True, False])
@pytest.mark.parametrize("is_async", [True, False])
def test_a_method_that_hangs(stop_during, is_over, is_async):
    process = stop_during("hang", is_over=is_over, **{"async": is_async})
    assert "Graceful shutdown completed" in process.output


def test_a_callback_that_hangs(stop_during):
    """Its thread is no method's: nothing waits for it."""
    stop_during("hang_in_callback", "--grace", str(10 * PATIENCE))


def test_an_interpreter_waits_for_methods_of_servers_that_have_stopped():
    source = """
    import sys, threading, time
    import grpc
    from django_grpc import engine

    def outlast_call(request, context):
        begun.set()
        time.sleep(0.5)
        print("came to its end", server.join(0))

    begun = threading.Event()
    server = engine.server(None)
    handlers = {"Call": grpc.unary_unary_rpc_method_handler(outlast_call)}
    server.add_registered_method_handlers("a.B", handlers)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary("/a.B/Call").future(b"")
        begun.wait()
        call.cancel()
    server.stop(5).wait()
    assert not server.join(0)
    """
    completed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    assert completed.stdout == "came to its end False\n"


@pytest.mark.parametrize("arguments", [(), ("--workers", "2")])
@pytest.mark.parametrize("is_async", [True, False])
def test_a_thread_that_is_no_daemon(stop_during, arguments, is_async):
    stop_during("start_thread", *arguments, **{"async": is_async})


def test_what_is_registered_with_atexit_has_its_time(stop_during):
    assert "written" in stop_during("take_time_at_exit").output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_late_signal_ends_what_is_registered_with_atexit(start_endless, number):
    """As soon as it can't belong together with the one that has stopped the server."""
    process = start_endless()
    with listening(process) as channel:
        channel.unary_unary("/test.Endless/stay_at_exit")(b"", timeout=PATIENCE)
    process.send(number)
    process.send(number)
    process.wait_for("flushing")
    assert process.send_until_end(number) == 128 + number
    assert process.wait() == 128 + number
    assert "Graceful shutdown completed" in process.output
    assert "Ended at once" in process.output


def test_a_thread_that_hears_no_signals_says_so(start_endless):
    script = """
import sys, threading
import django
from django.core.management import call_command

django.setup()
threading.Thread(target=call_command, args=("grpcserver", *sys.argv[1:])).start()
"""
    process = start_endless(script=script)
    process.wait_for(LISTENING)
    assert "SIGTERM and SIGINT start no drain" in process.output
    process.send(signal.SIGTERM)
    assert process.wait() == -signal.SIGTERM


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (StoppedAtStart("SIGTERM"), 0, ""),
        (KeyboardInterrupt(), 130, ""),
        (SystemExit(5), 5, ""),
        (SystemExit(), 0, ""),
        (SystemExit("no"), 1, "no\n"),
        (CommandError("no", returncode=3), 3, "CommandError: no\n"),
        (LookupError("x"), 1, "LookupError: x\n"),
    ],
)
def test_what_was_to_end_a_server_that_is_given_up_is_told(capsys, error, status, text):
    assert Command().tell(error) == status
    assert capsys.readouterr().err.endswith(text)


LATE = """
import signal
from django_grpc.management.commands import grpcserver

end = grpcserver.end_in_peace

def end_late():
    signal.raise_signal(signal.SIGTERM)
    end()

grpcserver.end_in_peace = end_late

from sampleapp.servicer import grpc_hook
"""


@pytest.mark.parametrize("arguments", [(), ("--workers", "2"), ("--autoreload",)])
@pytest.mark.parametrize("is_async", [True, False])
def test_a_second_signal_at_the_very_end_changes_no_status(start, tmp_path, arguments, is_async):
    """Where a wrapper signals the process and its group, the second may come at any moment."""
    (tmp_path / "late.py").write_text(LATE)
    script = """
import sys
import late
from django.core.management import execute_from_command_line

execute_from_command_line(["manage.py", "grpcserver", *sys.argv[1:]])
"""
    process = start(
        *("--port", "0", *arguments),
        script=script if "--workers" in arguments else None,  # the parent imports no servicers
        servicers=["late.grpc_hook"],
        **{"async": is_async},
    )
    process.wait_for(LISTENING)
    process.send(signal.SIGTERM)
    assert process.wait() == 0
    assert "Graceful shutdown completed" in process.output


AFTERWARDS = """
import sys, time
from django.core.management import execute_from_command_line

execute_from_command_line(["manage.py", "grpcserver", *sys.argv[1:]])
time.sleep(2.5)
print("went on", flush=True)
"""


def test_a_program_goes_on_after_the_command(start_endless):
    process = start_endless("--list-handlers", script=AFTERWARDS)
    assert process.wait() == 0
    assert "went on\n" in process.output


def test_what_a_program_starts_after_the_command_has_its_time(start_endless):
    script = f"""
{AFTERWARDS}
import atexit, threading

def linger():
    time.sleep(1.5)
    print("lingered", flush=True)

atexit.register(linger)
threading.Thread(target=linger).start()
sys.exit(7)
"""
    process = start_endless("--list-handlers", script=script)
    assert process.wait() == 7
    assert process.output.count("lingered") == 2


@pytest.mark.parametrize("hook", ["", "sys.excepthook = lambda *_: linger(2)"])
def test_a_thread_that_never_ends_does_not_keep_the_process(start_endless, hook):
    """Whatever its methods are, and once the error that has ended the program has been told."""
    script = f"""
import atexit, sys, threading, time
from django.core.management import execute_from_command_line

def linger(seconds):
    time.sleep(seconds)
    print("lingered", flush=True)

atexit.register(print, "at exit")

class Own(threading.Thread):
    def join(self):
        super().join()

    def is_alive(self):
        return False

Own(target=time.sleep, args=(1000,)).start()
execute_from_command_line(["manage.py", "grpcserver", *sys.argv[1:]])
{hook}
raise ValueError("no")
"""
    process = start_endless("--list-handlers", script=script)
    assert process.wait() == 1  # the program's
    assert "at exit" in process.output
    assert "Exception ignored" not in process.output
    assert process.output.count("lingered") == bool(hook)
    assert ("ValueError" in process.output) != bool(hook)


@pytest.mark.parametrize(
    ("afterwards", "status", "output"),
    [
        ("threading.Thread(target=linger).start()", 7, "lingered"),
        ("daemon.start(); atexit.register(daemon.join)", 7, "lingered"),
        ("signal.signal(signal.SIGURG, signal.SIG_IGN)", 0, ""),  # which ends the wait for threads
    ],
)
def test_a_program_goes_on_beside_a_thread_that_never_ends(
    start_endless, afterwards, status, output
):
    script = f"""
import atexit, signal, sys, threading, time
from django.core.management import execute_from_command_line

def linger():
    time.sleep(4)
    print("lingered", flush=True)

threading.Thread(target=time.sleep, args=(1000,)).start()
execute_from_command_line(["manage.py", "grpcserver", *sys.argv[1:]])
daemon = threading.Thread(target=linger, daemon=True)
{afterwards}
sys.exit(7)
"""
    process = start_endless("--list-handlers", script=script)
    assert process.wait() == status
    assert output in process.output


@pytest.mark.parametrize("method", ["ignore", "leave_thread"])
def test_a_program_goes_on_after_a_stop_that_cut_calls(stop_during, method):
    process = stop_during(method, script=AFTERWARDS)
    assert "went on\n" in process.output


def test_a_program_goes_on_after_a_greenlet_whose_calls_were_cut(stop_during):
    pytest.importorskip("greenlet")
    script = AFTERWARDS.replace(
        "execute_from_command_line(",
        "import greenlet; greenlet.greenlet(execute_from_command_line).switch(",
    )
    process = stop_during("ignore", script=script)
    assert "went on\n" in process.output


@pytest.mark.parametrize(
    "start_child",
    [
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(9)'])",
        "child = os.fork() or time.sleep(9) or os._exit(9)",
    ],
)
def test_what_a_function_of_atexit_starts_hears_signals(start, start_child):
    script = f"""
import atexit, os, signal, subprocess, sys, time
from django.core.management import execute_from_command_line

def start_child():
    {start_child}
    pid = getattr(child, "pid", child)
    time.sleep(0.2)
    os.kill(pid, signal.SIGTERM)
    print("child:", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)

atexit.register(start_child)
execute_from_command_line(["manage.py", "grpcserver", *sys.argv[1:]])
"""
    process = start("--port", "0", script=script)
    process.wait_for(LISTENING)
    process.send(signal.SIGTERM)
    assert process.wait() == 0
    assert "child: -15\n" in process.output


@pytest.mark.parametrize("is_async", [True, False])
def test_servers_of_one_process_are_released(start, is_async):
    """A script may call the command again and again."""
    script = """
import gc, os, signal, sys, time, weakref
import django

django.setup()
from django.core.management import call_command
from django_grpc.management.commands import grpcserver

servers = []

class Command(grpcserver.Command):
    def get_server(self, config):
        server = super().get_server(config)
        servers.append(weakref.ref(server))
        return server

    def on_listening(self, server, config, address, **options):
        os.kill(os.getpid(), signal.SIGTERM)

for _ in range(3):
    call_command(Command(), *sys.argv[1:])
for _ in range(100):  # threads may be about to leave
    gc.collect()
    if not any(server() for server in servers):
        break
    time.sleep(0.1)
print("left:", sum(server() is not None for server in servers))
"""
    servicers = ["sampleapp.servicer.grpc_hook"]
    process = start("--port", "0", script=script, servicers=servicers, **{"async": is_async})
    assert process.wait() == 0
    assert "left: 0" in process.output


@pytest.mark.parametrize("is_async", [True, False])
@pytest.mark.parametrize("where", ["in a callback", "in on_listening"])
def test_a_forked_child_that_leaves_takes_nothing_along(start, where, is_async):
    """Its parent goes on serving, and the project is told of one end: the parent's."""
    script = """
import asyncio, os, sys, threading, time
import django

django.setup()
from django.core.management import execute_from_command_line
from django_grpc.management.commands import grpcserver
from django_grpc.signals import grpc_shutdown

def leave():
    child = os.fork()
    if child == 0:
        sys.exit(0)
    # Not before the child has gone.
    threading.Thread(target=lambda: (os.waitpid(child, 0), print("child left", flush=True))).start()

on_listening = grpcserver.Command.on_listening

def fork(self, server, config, *arguments, **options):
    on_listening(self, server, config, *arguments, **options)
    if config.is_async and WHERE == "in a callback":
        asyncio.get_running_loop().call_later(0.1, leave)
    else:
        leave()

grpcserver.Command.on_listening = fork
grpc_shutdown.connect(lambda **kwargs: print("told", flush=True), weak=False)
execute_from_command_line(["manage.py", "grpcserver", *sys.argv[1:]])
"""
    servicer = "sampleapp.async_servicer" if is_async else "sampleapp.servicer"
    process = start(
        *("--port", "0"),
        script=f"WHERE = {where!r}\n{script}",
        servicers=[f"{servicer}.grpc_hook"],
        **{"async": is_async},
    )
    port = process.wait_for(LISTENING).group(1)
    process.wait_for("child left")
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        for _ in range(3):
            say_hello(channel)
    process.send(signal.SIGTERM)
    assert process.wait() == 0
    assert process.output.count("told") == 1
    assert process.output.count("Graceful shutdown completed") == 1


def test_a_leftover_that_stops_the_loop(stop_during):
    process = stop_during("leave_stopping", **{"async": True})
    assert "A task that was left at the end has raised RuntimeError" in process.output
    assert "Traceback" not in process.output


@pytest.mark.parametrize("is_async", [True, False])
def test_an_on_shutdown_that_raises_ends_the_command(start_endless, is_async):
    """Also by what no future takes: StopIteration, as a bare `next()` raises it."""
    script = """
import sys
import django

django.setup()
from django.core.management import call_command
from django_grpc.management.commands import grpcserver

class Command(grpcserver.Command):
    def on_shutdown(self):
        next(iter(()))

try:
    call_command(Command(), *sys.argv[1:])
except (StopIteration, RuntimeError) as error:
    print("raised")
"""
    process = start_endless(script=script, **{"async": is_async})
    process.wait_for(LISTENING)
    process.send(signal.SIGTERM)
    assert process.wait() == 0
    assert "raised\n" in process.output


@pytest.mark.parametrize("end", ["sys.exit(3)", "raise ValueError('no')", "return"])
@pytest.mark.parametrize("is_async", [True, False])
def test_a_child_that_a_receiver_forks_ends(start, end, is_async):
    script = f"""
import os, sys
import django

django.setup()
from django.core.management import execute_from_command_line
from django_grpc.signals import grpc_shutdown

def fork(**kwargs):
    child = os.fork()
    if child == 0:
        {end}
    else:
        print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)

grpc_shutdown.connect(fork, weak=False)
execute_from_command_line(["manage.py", "grpcserver", *sys.argv[1:]])
"""
    servicers = ["sampleapp.servicer.grpc_hook"]
    process = start("--port", "0", script=script, servicers=servicers, **{"async": is_async})
    process.wait_for(LISTENING)
    process.send(signal.SIGTERM)
    assert process.wait() == 0
    assert re.search(r"^child \d$", process.output, re.MULTILINE)
