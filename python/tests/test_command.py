"""`manage.py grpcserver` as a process: what it prints, how it ends, what it says to mistakes."""

import asyncio
import io
import os
import re
import signal
import socket
import sys
import textwrap
import threading
import time
from pathlib import Path

import django
import grpc
import pytest
from certificates import make_certificate
from django.core.management import CommandError, call_command
from harness import LISTENING, PATIENCE, begin_sleep, listening, say_hello

from django_grpc.lifecycle.stop_signals import TOGETHER
from django_grpc.management.commands.grpcserver import Command


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_server_answers_until_it_is_told_to_stop(number, start):
    process = start("--port", "0")
    with listening(process) as channel:
        assert say_hello(channel) == "Hello, World!"
        process.send(number)
        assert process.wait() == 0
    assert f"Received {number.name}." in process.output
    assert process.output.endswith("Graceful shutdown completed\n")
    assert "Traceback" not in process.output


@pytest.fixture
def shutdown_receiver(tmp_path):
    """A hook for the servers whose project hears of the shutdown."""
    (tmp_path / "shutdown_hook.py").write_text(
        textwrap.dedent(
            """
            from django.dispatch import receiver
            from django_grpc.signals import grpc_request_finished, grpc_shutdown
            from sampleapp.servicer import grpc_hook

            @receiver(grpc_request_finished)
            def on_finished(**kwargs):
                print("call finished", flush=True)

            @receiver(grpc_shutdown)
            def on_shutdown(**kwargs):
                print("project shut down", flush=True)
                if FAILS:
                    raise ValueError("cannot let go")

            FAILS = False

            def failing_hook(server):
                global FAILS
                FAILS = True
                grpc_hook(server)
            """
        )
    )
    return "shutdown_hook.grpc_hook"


def test_call_in_flight_ends_before_the_project_hears_of_the_shutdown(start, shutdown_receiver):
    process = start("--port", "0", servicers=[shutdown_receiver])
    with listening(process) as channel:
        call = begin_sleep(channel, 0.5)
        process.send(signal.SIGTERM)
        assert len(list(call)) == 2
        assert process.wait() == 0
    lines = process.output.splitlines()
    assert [it for it in lines if it in ("call finished", "project shut down")] == [
        "call finished",
        "project shut down",
    ]


def test_new_connections_are_refused_while_the_server_drains(start):
    process = start("--port", "0")
    port = process.wait_for(LISTENING).group(1)
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = begin_sleep(channel, 1)
        process.send(signal.SIGTERM)
        process.wait_for("Received SIGTERM")
        is_refused = False  # the listener closes a little after that line
        while not is_refused and not call.done():
            try:
                socket.create_connection(("127.0.0.1", int(port)), timeout=PATIENCE).close()
            except ConnectionRefusedError:
                is_refused = True
            except ConnectionResetError:
                pass  # it came between the listener's last look and its end
        assert is_refused
        assert len(list(call)) == 2, "the call in flight is not disturbed"
        assert process.wait() == 0


def test_receiver_of_the_shutdown_that_raises_is_reported(start, shutdown_receiver):
    process = start(
        "--port", "0", servicers=[shutdown_receiver.replace("grpc_hook", "failing_hook")]
    )
    with listening(process):
        process.send(signal.SIGTERM)
        assert process.wait() == 0
    assert "Error during graceful shutdown: cannot let go" in process.output


@pytest.mark.parametrize("by", ["flag", "setting"])
def test_call_that_outlives_the_grace_is_cut(by, start):
    if by == "flag":
        process = start("--port", "0", "--grace", "0.2")
    else:
        process = start("--port", "0", grace=0.2)
    with listening(process) as channel:
        call = begin_sleep(channel, 100)
        process.send(signal.SIGTERM)
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
        assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        assert process.wait() == 0, "though the call's thread sleeps on"


def test_log_handler_that_waits_does_not_keep_the_process(start, tmp_path):
    """Python's own end waits for the lock that a handler holds."""
    (tmp_path / "waiting_hook.py").write_text(
        textwrap.dedent(
            """
            import logging, threading, time
            from django_grpc.logs import GuardedLogger
            from sampleapp import servicer

            class Waiting(logging.Handler):
                def emit(self, record):
                    print("it waits", flush=True)
                    time.sleep(3600)

            def grpc_hook(server):
                servicer.grpc_hook(server)
                logging.getLogger("django_grpc.tested").addHandler(Waiting())
                logger = GuardedLogger("django_grpc.tested")
                threading.Thread(target=logger.error, args=("one",), daemon=True).start()
            """
        )
    )
    process = start("--port", "0", servicers=["waiting_hook.grpc_hook"])
    process.wait_for("it waits")
    with listening(process):
        process.send(signal.SIGTERM)
        assert process.wait() == 0


def test_second_signal_ends_the_server_at_once(start):
    process = start("--port", "0")
    with listening(process) as channel:
        call = begin_sleep(channel, 100)
        process.send(signal.SIGTERM)
        process.wait_for("Received SIGTERM")
        time.sleep(TOGETHER)
        assert not call.done()
        process.send(signal.SIGTERM)
        assert process.wait() == 128 + signal.SIGTERM
    assert "Graceful shutdown completed" not in process.output


def test_address_is_given_in_one_argument_as_to_runserver(start):
    process = start("127.0.0.1:0", host="192.0.2.1")
    with listening(process) as channel:
        assert say_hello(channel) == "Hello, World!"


def test_unix_socket_is_listened_on(start, tmp_path):
    path = tmp_path / "grpc.sock"
    process = start(f"unix:{path}")
    process.wait_for("gRPC server is listening")
    with grpc.insecure_channel(f"unix:{path}") as channel:
        assert say_hello(channel) == "Hello, World!"
    process.send(signal.SIGTERM)
    assert process.wait() == 0


@pytest.mark.parametrize("arguments", [[], ["--workers", "2"], ["--autoreload"]], ids=str)
def test_handlers_are_listed_beside_a_server_that_runs(arguments, start):
    port = start("--port", "0").wait_for(LISTENING).group(1)
    process = start("--port", port, "--list-handlers", *arguments, reflection=True)
    assert process.wait() == 0
    first, *handlers = process.output.splitlines()
    assert first == "Registered handlers:"
    paths = [it.removeprefix("* ").partition(":")[0] for it in handlers]
    assert paths == sorted(paths)
    assert "/helloworld.Greeter/SayHelloToEach" in paths
    assert "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo" in paths


def test_mistake_keeps_handlers_from_being_listed(start):
    process = start("--list-handlers", servicers=["sampleapp.nowhere.grpc_hook"])
    assert_refuses(process, "'sampleapp.nowhere.grpc_hook' can't be imported")


def test_unapplied_migrations_are_warned_about(start):
    process = start("--port", "0")
    process.wait_for("unapplied migration")
    process.wait_for(LISTENING)


def test_database_that_is_down_does_not_keep_the_server_from_starting(start, tmp_path):
    (tmp_path / "settings_without_database.py").write_text(
        "from process_settings import *\n"
        "DATABASES = {'default': {'ENGINE': 'django.db.backends.sqlite3',"
        " 'NAME': '/no/such/folder/db'}}\n"
    )
    process = start(
        "--port", "0", environment={"DJANGO_SETTINGS_MODULE": "settings_without_database"}
    )
    process.wait_for("The database can't be asked")
    with listening(process) as channel:
        assert say_hello(channel) == "Hello, World!"


@pytest.fixture
def refuses(settings, tmp_path, monkeypatch, databases_allowed):
    """Run the command in this process, to see that it refuses to and says some texts.

    How a process tells of it, `assert_refuses` looks at.
    """
    monkeypatch.syspath_prepend(tmp_path)
    known = set(sys.modules)

    def refuses(*arguments, texts, **setting):
        settings.GRPCSERVER = {
            "servicers": ["sampleapp.servicer.grpc_hook"],
            "host": "127.0.0.1",
            **setting,
        }
        with pytest.raises(CommandError) as caught:
            call_command("grpcserver", *arguments, stdout=io.StringIO(), stderr=io.StringIO())
        assert caught.value.returncode == 1
        for text in texts:
            assert text in str(caught.value)
        assert "\n" not in str(caught.value)

    yield refuses
    for name in set(sys.modules) - known:
        if is_in(tmp_path, sys.modules[name]):
            del sys.modules[name]


def is_in(folder, module):
    return (getattr(module, "__file__", None) or "").startswith(str(folder))


@pytest.mark.parametrize("arguments", [[], ["--workers", "2"]], ids=str)
def test_database_that_says_nothing_does_not_keep_the_server_from_starting(
    arguments, start, tmp_path
):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        (tmp_path / "settings_with_silence.py").write_text(
            "from process_settings import *\n"
            "DATABASES = {'default': {'ENGINE': 'django.db.backends.postgresql', 'NAME': 'it',"
            f" 'HOST': '127.0.0.1', 'PORT': {silent.getsockname()[1]}}}}}\n"
        )
        environment = {"DJANGO_SETTINGS_MODULE": "settings_with_silence"}
        process = start("--port", "0", *arguments, environment=environment)
        process.wait_for("The database can't be asked, some checks are left out: it says nothing")
        with listening(process) as channel:
            assert say_hello(channel) == "Hello, World!"


@pytest.mark.parametrize("workers", ["1", "2"])
def test_name_that_can_not_be_resolved_is_told(workers, refuses):
    said = "the name can't be resolved ("
    refuses("--host", "no.such.host.invalid", "--workers", workers, texts=[said])
    metrics = ("--metrics", "no.such.host.invalid:1")
    refuses("--port", "0", *metrics, "--workers", workers, texts=["Metrics can't be served", said])


def assert_refuses(process, *texts):
    """It ends with status 1 and one sentence."""
    assert process.wait() == 1
    errors = [line for line in process.output.splitlines() if line.startswith("CommandError: ")]
    assert len(errors) == 1, process.output
    for text in texts:
        assert text in errors[0]
    assert "Traceback" not in process.output
    assert process.output.endswith(errors[0] + "\n")


@pytest.mark.parametrize(
    ("setting", "texts"),
    [
        (
            {"servicers": ["sampleapp.nowhere.grpc_hook"]},
            ["GRPCSERVER['servicers']: 'sampleapp.nowhere.grpc_hook' can't be imported"],
        ),
        (
            {"interceptors": ["sampleapp.servicer.Missing"]},
            ["GRPCSERVER['interceptors']: 'sampleapp.servicer.Missing' can't be imported"],
        ),
        (
            {"maximum_concurent_rpcs": 5},
            ["no key 'maximum_concurent_rpcs'", "Did you mean 'maximum_concurrent_rpcs'?"],
        ),
        ({"max_workers": "many"}, ["GRPCSERVER['max_workers'] must be a whole number"]),
        (
            {"credentials": [{"private_key": "/no/key.pem", "certificate_chain": "/no/chain.pem"}]},
            ["'/no/key.pem' can't be read: No such file or directory."],
        ),
    ],
    ids=lambda it: next(iter(it)) if isinstance(it, dict) else "",
)
def test_mistake_in_the_settings_is_one_sentence(setting, texts, refuses):
    refuses("--port", "0", texts=texts, **setting)


def test_mistake_in_the_settings_ends_the_process(start):
    process = start("--port", "0", max_workers="many")
    assert_refuses(process, "GRPCSERVER['max_workers'] must be a whole number")


def test_port_that_is_taken_is_one_sentence(refuses):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refuses("--port", str(port), texts=[f"127.0.0.1:{port}", "already in use"])


def test_second_server_on_a_port_is_refused(start):
    first = start("--port", "0")
    port = first.wait_for(LISTENING).group(1)
    assert_refuses(start("--port", port), f"127.0.0.1:{port}", "already in use")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--port", "70000"], "--port must be a port number, 0 to 65535, not 70000."),
        (["localhost"], "'localhost' is not a port number, an address:port pair or a unix:PATH."),
        (["::1:50051"], "'::1:50051' is not a port number"),
        (["--port", "-1"], "--port must be a port number, 0 to 65535, not -1."),
        (["localhost:70000"], "70000 is not a port number: it must be 0 to 65535."),
        (["--host", "127.0.0.1:5"], "--host must be an address without a port"),
        (["--max-workers", "0"], "--max_workers must be a whole number above 0, not 0."),
        (["--max_workers", "0"], "--max_workers must be a whole number above 0, not 0."),
        (["--grace", "-1"], "--grace must be a number of seconds, 0 or more, not -1"),
    ],
)
def test_mistake_in_an_argument_is_one_sentence(arguments, text, refuses):
    refuses(*arguments, texts=[text])


def test_file_in_the_place_of_a_socket_is_one_sentence(refuses, tmp_path):
    (tmp_path / "file").touch()
    refuses(f"unix:{tmp_path}/file", texts=["a file of this name that is no socket"])


def test_socket_in_a_folder_that_is_not_there_is_one_sentence(refuses, tmp_path):
    refuses(f"unix:{tmp_path}/run/socket", texts=[f"there is no folder {tmp_path}/run. Create it"])


def test_variable_that_means_nothing_is_one_sentence(start):
    process = start("--port", "0", environment={"GRPCSERVER_GRCE": "60"})
    assert_refuses(process, "GRPCSERVER_GRCE means nothing. Did you mean GRPCSERVER_GRACE?")


def test_what_kubernetes_says_of_a_service_is_no_mistake(start):
    environment = {
        "GRPCSERVER_PORT": "tcp://10.0.0.1:50051",
        "GRPCSERVER_PORT_50051_TCP_ADDR": "10.0.0.1",
        "GRPCSERVER_SERVICE_HOST": "10.0.0.1",
        "GRPCSERVER_SERVICE_PORT_GRPC": "50051",
    }
    start("--port", "0", environment=environment).wait_for(LISTENING)


@pytest.mark.parametrize("port", [None, "0"])
def test_port_may_be_set_elsewhere(port, start):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    environment = {} if port is None else {"GRPCSERVER_PORT": port}
    process = start(environment=environment, port=number)
    found = process.wait_for(LISTENING).group(1)
    assert (found == str(number)) is (port is None)


def test_what_is_printed_at_start(start, tmp_path):
    process = start("--port", "0", "--max-workers", "3")
    process.wait_for("Address")
    lines = process.output.splitlines()
    assert lines[0].startswith("gRPC server starting at ")
    assert lines[1] == (f"Django version {django.get_version()}, using settings 'process_settings'")
    assert re.fullmatch(
        r"Address 127\.0\.0\.1:\d+, plaintext, 3 threads\. Quit with CONTROL-C\.", lines[-1]
    )
    made = make_certificate(tmp_path, "localhost")
    pair = {"private_key": str(made.key_file), "certificate_chain": str(made.certificate_file)}
    start("--port", "0", credentials=[pair]).wait_for(r"Address [\d.:]+, TLS, \d+ threads\.")


@pytest.mark.parametrize(
    ("arguments", "setting"),
    [([], {}), ([], {"async": True}), (["--workers", "2"], {}), (["--autoreload"], {})],
    ids=str,
)
def test_nothing_is_printed_at_verbosity_0(arguments, setting, start, tmp_path):
    path = tmp_path / "grpc.sock"
    # The readiness checks' warnings are the log's.
    process = start(f"unix:{path}", "-v0", *arguments, health=False, **setting)
    with grpc.insecure_channel(f"unix:{path}") as channel:
        assert say_hello(channel) == "Hello, World!"
        process.send(signal.SIGTERM)
        assert process.wait() == 0
    assert process.output == ""


def test_mistake_is_printed_at_verbosity_0(start):
    assert_refuses(start("-v0", max_workers="many"), "must be a whole number")


def names_of_threads(pid):
    return {it.read_text().strip() for it in Path(f"/proc/{pid}/task").glob("*/comm")}


def test_threads_have_names(start):
    process = start("--port", "0", "--watchdog", "5", "--access-log", "text")
    with listening(process) as channel:
        assert say_hello(channel) == "Hello, World!"
        process.wait_for("SayHello")
        names = names_of_threads(process.pid)
    assert {"grpc-worker", "grpc-watchdog", "grpc-call-log", "grpc-health"} <= names


def test_parent_of_workers_has_a_title_of_its_own(start):
    pytest.importorskip("setproctitle")
    process = start("--port", "0", "--workers", "2")
    process.wait_for(LISTENING)

    def title(pid):
        return Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0")

    pid = process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    assert title(pid) == "grpcserver: parent [process_settings]"
    assert [title(it) for it in children] == ["grpcserver: worker [process_settings]"] * 2


def test_all_wrong_keys_are_told_at_once(start):
    process = start("--port", "0", servicer=[], max_workers="many")
    assert process.wait() == 1
    assert "no key 'servicer'. Did you mean 'servicers'?" in process.output
    assert "GRPCSERVER['max_workers'] must be a whole number" in process.output


@pytest.fixture
def patched(start, tmp_path):
    """Start a server in a process that is patched first of all, as by its `manage.py`."""
    pytest.importorskip("gevent")

    def start_patched(call, *arguments, then=""):
        source = f"import gevent.monkey\ngevent.monkey.{call}\n{then}\n"
        (tmp_path / "sitecustomize.py").write_text(source)
        return start("--port", "0", *arguments)

    return start_patched


@pytest.mark.parametrize("arguments", [[], ["--workers", "2"], ["--autoreload"]], ids=str)
@pytest.mark.parametrize(
    ("call", "replaced"),
    [("patch_all()", "threads"), ("patch_thread()", "threads"), ("patch_all(thread=False)", "que")],
)
def test_process_that_gevent_has_patched_is_refused(call, replaced, arguments, patched):
    assert_refuses(patched(call, *arguments), f"gevent has replaced the {replaced}")


def test_worker_processes_need_the_waits_of_the_system(patched):
    call = "patch_all(thread=False, queue=False)"
    assert_refuses(patched(call, "--workers", "2"), "gevent has replaced parts of", "--workers 1")
    process = patched(call)
    with listening(process) as channel:
        assert say_hello(channel) == "Hello, World!"
        process.send(signal.SIGTERM)
        assert process.wait() == 0


def test_no_thread_waits_in_a_loop_of_gevent_when_python_has_ended(patched):
    # Such a loop crashes when it wakes up, so the process stays a second after its interpreter.
    linger = "import ctypes; ctypes.CDLL(None).__cxa_atexit(ctypes.CDLL(None).usleep, 999_999, 0)"
    process = patched("patch_all(thread=False, queue=False)", then=linger)
    process.wait_for(LISTENING)
    process.send(signal.SIGTERM)
    assert process.wait() == 0


@pytest.mark.parametrize("is_async", [False, True])
def test_server_that_can_not_start_is_one_sentence(is_async, start, tmp_path):
    (tmp_path / "failing_server.py").write_text(
        textwrap.dedent(
            """
            from django_grpc.engine import aio, sync
            from sampleapp.servicer import grpc_hook

            def fail(self):
                raise RuntimeError("no threads")

            async def fail_async(self):
                fail(self)

            sync.Server.start = fail
            aio.Server.start = fail_async
            """
        )
    )
    process = start("--port", "0", servicers=["failing_server.grpc_hook"], **{"async": is_async})
    assert_refuses(process, "The server can't start: no threads")


MISTAKEN = """
import sys
import grpc
from sampleapp.helloworld_pb2_grpc import GreeterServicer, add_GreeterServicer_to_server
from sampleapp.servicer import grpc_hook

class NoInterceptor:
    pass

class Exiting:
    def __init__(self):
        sys.exit(3)

def exiting_hook(server):
    sys.exit()

async def async_hook(server):
    grpc_hook(server)

def starting_hook(server):
    grpc_hook(server)
    server.server.start()

def serve(server):
    grpc_hook(server)
    server.start()
    server.wait_for_termination()

def waiting_hook(server):
    grpc_hook(server)
    server.wait_for_termination()

def stopping_hook(server):
    grpc_hook(server)
    server.stop(None)

def swapping_hook(server):
    add_GreeterServicer_to_server(server, object())

def empty_hook(server):
    add_GreeterServicer_to_server(None, server)

def numbering_hook(server):
    class Numbered(GreeterServicer):
        SayHello = 5

    add_GreeterServicer_to_server(Numbered(), server)

def generating_hook(server):
    yield grpc_hook(server)

def idle_hook(server):
    pass

def hook_without_server():
    pass

def check_of_something(something):
    pass

def function_interceptor(continuation, details):
    return continuation(details)

class Misspelt(grpc.ServerInterceptor):
    def intercept_servise(self, continuation, details):
        return continuation(details)

class WithoutSelf(grpc.ServerInterceptor):
    def intercept_service(continuation, details):
        return continuation(details)
"""


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        (
            {"interceptors": ["mistaken.NoInterceptor"]},
            "GRPCSERVER['interceptors']: 'mistaken.NoInterceptor' is no grpc.ServerInterceptor",
        ),
        (
            {"interceptors": ["mistaken.Exiting"]},
            "GRPCSERVER['interceptors']: 'mistaken.Exiting' calls sys.exit(3).",
        ),
        (
            {"servicers": ["mistaken.exiting_hook"]},
            "GRPCSERVER['servicers']: 'mistaken.exiting_hook' calls sys.exit().",
        ),
        (
            {"servicers": ["mistaken.async_hook"]},
            "GRPCSERVER['servicers']: 'mistaken.async_hook' is an async function",
        ),
        (
            {"servicers": ["mistaken.generating_hook"]},
            "GRPCSERVER['servicers']: 'mistaken.generating_hook' is a generator function",
        ),
        (
            {"servicers": ["mistaken.idle_hook"]},
            "GRPCSERVER['servicers']: 'mistaken.idle_hook' adds no servicer to the server",
        ),
        (
            {"servicers": ["mistaken.hook_without_server"]},
            "'mistaken.hook_without_server' can't be called as it has to be. Give a function",
        ),
        (
            {"interceptors": ["mistaken.function_interceptor"]},
            "'mistaken.function_interceptor' can't be called as it has to be. Give a class with",
        ),
        (
            {"health": {"checks": ["mistaken.check_of_something"]}},
            "'mistaken.check_of_something' can't be called as it has to be. Give a function",
        ),
        (
            {"servicers": ["hooks.grpc"]},
            "'hooks.grpc' is of type module, which can't be called. Give the dotted path of a "
            "function or a class in it.",
        ),
        (
            {"credentials": [{"private_key": "a", "certificate": "b"}]},
            "has no key 'certificate'. Did you mean 'certificate_chain'?",
        ),
        (
            {"interceptors": ["mistaken.Misspelt"]},
            "'mistaken.Misspelt' is an abstract class: it has no intercept_service.",
        ),
        (
            {"interceptors": ["mistaken.WithoutSelf"]},
            "GRPCSERVER['interceptors']: 'mistaken.WithoutSelf': its intercept_service can't be "
            "called as it has to be: def intercept_service(self, continuation, ",
        ),
        *(
            (
                {"servicers": [f"mistaken.{hook}"]},
                f"GRPCSERVER['servicers']: 'mistaken.{hook}' calls {method}() of the server that "
                "it is given: leave that to whoever made it",
            )
            for hook, method in (
                ("serve", "start"),
                ("waiting_hook", "wait_for_termination"),
                ("stopping_hook", "stop"),
            )
        ),
        (
            {"servicers": ["mistaken.swapping_hook"]},
            "GRPCSERVER['servicers']: 'mistaken.swapping_hook': add_GreeterServicer_to_server() "
            "takes a servicer and then the server, and the object of type 'Server' that it is "
            "given for one of them has no 'SayHello'.",
        ),
        (
            {"servicers": ["mistaken.empty_hook"]},
            "and the object of type 'NoneType' that it is given for one of them has no 'SayHello'.",
        ),
        (
            {"servicers": ["mistaken.numbering_hook"]},
            "/helloworld.Greeter/SayHello: its servicer has an object of type 'int' in the place "
            "of the method. Write a method that takes the request and the context.",
        ),
        (
            {"servicers": ["misplaced.hook"]},
            "hi_pb2_grpc.py:1 is generated, and imports by the path that its .proto had for protoc",
        ),
        (
            {"methods": {"/helloworld.Greeter/SayHelo": {"concurrency": 1}}},
            "no servicer has '/helloworld.Greeter/SayHelo'. Did you mean "
            "'/helloworld.Greeter/SayHello'?",
        ),
        (
            {"methods": {"/helloworld.Greter/*": {"concurrency": 1}}},
            "no servicer has '/helloworld.Greter/*'. Did you mean '/helloworld.Greeter/*'?",
        ),
        (
            {"servicers": ["importing.hook"]},
            "No module named 'not_there'. Mend the import in ",
        ),
        (
            {"servicers": ["leaving.hook"]},
            "GRPCSERVER['servicers']: 'leaving.hook' can't be imported: its module calls sys.exit(",
        ),
        (
            {"options": [("django_grpc.uvloop", "x")]},
            "The server option 'django_grpc.uvloop' must be 0 or 1, not 'x'.",
        ),
        (
            {"options": [("django_grpc.uvloop", 2)]},
            "The server option 'django_grpc.uvloop' must be 0 or 1, not 2.",
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("is_async", [False, True])
def test_mistake_in_what_the_settings_name_is_one_sentence(
    setting, text, is_async, refuses, tmp_path
):
    (tmp_path / "mistaken.py").write_text(MISTAKEN)
    (tmp_path / "leaving.py").write_text("import sys\nsys.exit('no licence')\n")
    (tmp_path / "misplaced.py").write_text("from protos import hi_pb2_grpc\n")
    (tmp_path / "protos").mkdir()
    (tmp_path / "protos" / "hi_pb2_grpc.py").write_text("import hi_pb2 as hi__pb2\n")
    (tmp_path / "hooks").mkdir()
    (tmp_path / "hooks" / "grpc.py").touch()
    (tmp_path / "importing.py").write_text("import importing_too\n")
    (tmp_path / "importing_too.py").write_text("def load():\n    import not_there\nload()\n")
    refuses("--port", "0", texts=[text], **{**setting, "async": is_async})


@pytest.mark.parametrize(
    ("health", "text"),
    [
        (True, "A hook of GRPCSERVER['servicers'] has started the server: leave that to"),
        (False, "The server can't start: Cannot start already-started server!"),
    ],
)
def test_hook_that_starts_the_server_is_one_sentence(health, text, refuses, tmp_path):
    (tmp_path / "mistaken.py").write_text(MISTAKEN)
    refuses("--port", "0", texts=[text], servicers=["mistaken.starting_hook"], health=health)


@pytest.mark.parametrize(
    ("method", "text"),
    [
        ("def get_server(self, config): super().get_server(config)", "get_server() returns an"),
        ("def get_server(self, config): return {}", "type dict, where a server is needed"),
        ("def get_config(self, **options): super().get_config(**options)", "get_config() returns"),
        (
            "def get_server(self, config):\n        from django_grpc.engine import aio\n"
            "        return aio.server()",
            "return what super().get_server(config) does.",
        ),
    ],
)
@pytest.mark.parametrize("workers", ["1", "2"])
def test_subclass_that_forgets_to_return_is_told(
    method, text, workers, settings, databases_allowed
):
    names = {"Command": Command}
    exec(f"class Own(Command):\n    {method}\n", names)  # noqa: S102 - as a project writes it
    settings.GRPCSERVER = {"servicers": ["sampleapp.servicer.grpc_hook"], "workers": int(workers)}
    if workers == "2" and "get_server" in method:
        pytest.skip("that is asked in a worker process")
    with pytest.raises(CommandError, match=re.escape(text)):
        call_command(names["Own"](), "--port", "0", "--skip-checks")


@pytest.mark.parametrize(
    "database",
    [{"OPTIONS": {"no_such_option": 1}}, {"CONN_MAX_AGE": "60"}],
    ids=str,
)
def test_database_whose_settings_do_not_fit_is_one_sentence(database, start, tmp_path):
    (tmp_path / "misfit_settings.py").write_text(
        "from process_settings import *\n"
        f"DATABASES['default'] = {{**DATABASES['default'], **{database!r}}}\n"
    )
    process = start("--port", "0", environment={"DJANGO_SETTINGS_MODULE": "misfit_settings"})
    assert process.wait() == 1
    assert "CommandError: DATABASES['default'] can't be used: TypeError: " in process.output
    assert "Traceback" not in process.output


def test_command_on_an_event_loop_is_one_sentence():
    async def run():
        call_command("grpcserver", "--port", "0")

    with pytest.raises(CommandError, match="waits for its end, which nothing must do on an event"):
        asyncio.run(run())


def test_autoreload_on_another_thread_is_one_sentence(settings):
    def run():
        with pytest.raises(CommandError, match="--autoreload needs the main thread"):
            call_command("grpcserver", "--autoreload")
        said.append(True)

    said = []
    thread = threading.Thread(target=run)
    thread.start()
    thread.join(PATIENCE)
    assert said


@pytest.mark.parametrize("workers", ["1", "2"])
def test_output_of_the_projects_own_may_lack_all_but_write(workers, start, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        textwrap.dedent(
            """
            import sys

            class Tee:
                def __init__(self, stream):
                    self.stream = stream

                def write(self, text):
                    self.stream.write(text)
                    self.stream.flush()

            sys.stdout = Tee(sys.stdout)
            """
        )
    )
    process = start("--port", "0", "--workers", workers)
    process.wait_for(LISTENING)
    process.send(signal.SIGTERM)
    process.wait()
    assert "Graceful shutdown completed" in process.output
    assert "output.py" not in process.output  # as a traceback from inside has


@pytest.mark.parametrize("is_async", [False, True])
def test_handler_that_is_none_is_one_sentence(is_async, refuses, tmp_path):
    (tmp_path / "mistaken.py").write_text(
        "import grpc\n"
        "def method(request, context): pass\n"
        "handler = grpc.method_handlers_generic_handler('k.K', {'Method': method})\n"
        "def hook(server): server.add_generic_rpc_handlers((handler,))\n"
    )
    text = "/k.K/Method: a method handler is needed"
    refuses("--port", "0", texts=[text], servicers=["mistaken.hook"], **{"async": is_async})


def test_system_check_errors_keep_the_server_from_starting(start, tmp_path):
    (tmp_path / "settings_with_error.py").write_text(
        "from process_settings import *\nCACHES = {}\n"
    )
    environment = {"DJANGO_SETTINGS_MODULE": "settings_with_error"}
    process = start("--port", "0", environment=environment)
    assert process.wait() == 1
    assert "SystemCheckError" in process.output
    process = start("--port", "0", "--skip-checks", environment=environment)
    process.wait_for(LISTENING)


def test_server_without_servicers_starts_and_says_so(start):
    process = start("--port", "0", servicers=[])
    process.wait_for("names no servicers")
    process.wait_for(LISTENING)


@pytest.mark.parametrize("argument", ["--host", "--metrics", None])
def test_argument_that_is_not_utf_8(argument, start):
    text = os.fsdecode(b"unix:\xff")
    process = start(*([argument, text] if argument else [text]))
    assert process.wait() == 2
    assert "is not UTF-8" in process.output
    assert "Traceback" not in process.output


@pytest.fixture
def start_patched(start, tmp_path):
    """Start a server whose settings run some code first."""

    def start_patched(code, *arguments, **setting):
        (tmp_path / "patching_settings.py").write_text(
            f"from process_settings import *\n{textwrap.dedent(code)}\n"
        )
        environment = {"DJANGO_SETTINGS_MODULE": "patching_settings"}
        return start("--port", "0", *arguments, environment=environment, **setting)

    return start_patched


def test_shortage_of_memory_for_worker_processes_is_one_sentence(start_patched):
    process = start_patched(
        """
        import os, resource

        make_file = os.memfd_create

        def make_last_file(*args):
            with open("/proc/self/statm") as file:
                size = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
            # What the processes share takes 32 MiB.
            resource.setrlimit(resource.RLIMIT_AS, (size + (16 << 20), resource.RLIM_INFINITY))
            return make_file(*args)

        os.memfd_create = make_last_file
        """,
        "--workers",
        "2",
    )
    assert_refuses(
        process, "worker processes share can't be made: memory is short. Raise", "ulimit"
    )


def test_shortage_of_memory_for_the_board_blames_no_setting(start_patched):
    process = start_patched(
        """
        import os, resource
        from django_grpc.processes import worker

        class Pulse(worker.Pulse):
            def __init__(self, *args):
                super().__init__(*args)
                with open("/proc/self/statm") as file:
                    size = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
                # The board takes 32 MiB.
                resource.setrlimit(resource.RLIMIT_AS, (size + (16 << 20), resource.RLIM_INFINITY))

        worker.Pulse = Pulse
        """,
        "--workers",
        "2",
    )
    assert process.wait() == 1
    assert "The statistics board can't be mapped: memory is short. Raise" in process.output
    assert "options" not in process.output
    assert "Traceback" not in process.output


REFUSE = """
import threading
start = threading.Thread.start

def refuse(self):
    if self.name.startswith({name!r}):
        raise RuntimeError("can't start new thread")
    start(self)

threading.Thread.start = refuse
"""


@pytest.mark.parametrize(
    ("name", "arguments", "is_async"),
    [
        ("grpcserver-follow", [], False),
        ("grpcserver-wait", [], True),
        ("grpcserver-pulse", ["--workers", "2"], False),
        ("grpcserver-control", ["--workers", "2"], False),
        ("grpc-control", [], False),
        ("grpc-call-log", ["--access-log", "text"], False),
        ("grpc-watchdog", ["--watchdog", "5"], True),
        ("django-main-thread", ["--autoreload"], False),
        ("grpcserver-follow", ["--autoreload"], False),
    ],
)
def test_shortage_of_threads_at_start_is_one_sentence(name, arguments, is_async, start_patched):
    process = start_patched(REFUSE.format(name=name), *arguments, **{"async": is_async})
    assert process.wait() == 1
    assert "The system refuses the server a thread. Raise the limit of threads" in process.output
    assert "listening" not in process.output
    assert "Traceback" not in process.output


def test_shortage_of_threads_for_renewed_certificates_is_one_sentence(start_patched, tmp_path):
    made = make_certificate(tmp_path, "localhost")
    pair = {"private_key": str(made.key_file), "certificate_chain": str(made.certificate_file)}
    process = start_patched(REFUSE.format(name="grpc-certificates"), credentials=[pair])
    assert_refuses(process, "The system refuses the server a thread. Raise the limit of threads")


def test_server_does_without_the_thread_that_helps_signals(start_patched):
    process = start_patched(REFUSE.format(name="grpcserver-signals"))
    with listening(process) as channel:
        assert say_hello(channel) == "Hello, World!"
        process.send(signal.SIGTERM)
        assert process.wait() == 0


def test_shortage_of_processes_for_the_reloader_is_one_sentence(start_patched):
    process = start_patched(
        """
        import errno, subprocess

        def refuse(*args, **kwargs):
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

        subprocess.Popen = refuse
        """,
        "--autoreload",
    )
    assert_refuses(process, "The process that serves can't be started", "ulimit -u")


def test_async_server_ends_although_no_thread_is_left(start, tmp_path):
    (tmp_path / "last_threads.py").write_text(
        textwrap.dedent(
            """
            import asyncio, threading
            from sampleapp import helloworld_pb2, helloworld_pb2_grpc

            def refuse(self):
                raise RuntimeError("can't start new thread")

            class Greeter(helloworld_pb2_grpc.GreeterServicer):
                async def SayHello(self, request, context):
                    name = await asyncio.to_thread(lambda: threading.current_thread().name)
                    threading.Thread.start = refuse
                    return helloworld_pb2.HelloReply(message=name)

            def grpc_hook(server):
                helloworld_pb2_grpc.add_GreeterServicer_to_server(Greeter(), server)
            """
        )
    )
    process = start("--port", "0", servicers=["last_threads.grpc_hook"], **{"async": True})
    with listening(process) as channel:
        assert say_hello(channel).startswith("asyncio_")
        process.send(signal.SIGTERM)
        assert process.wait() == 0
    assert process.output.endswith("Graceful shutdown completed\n")
    assert "Traceback" not in process.output


@pytest.fixture
def stuck_servicer(tmp_path):
    """The path of a hook whose module takes an hour to import."""

    def write(*, swallows=False):
        (tmp_path / "stuck_servicer.py").write_text(
            textwrap.dedent(
                f"""
                import time
                from sampleapp.servicer import grpc_hook

                print("importing", flush=True)
                try:
                    time.sleep(3600)
                except BaseException:
                    if not {swallows}:
                        raise
                """
            )
        )
        return "stuck_servicer.grpc_hook"

    return write


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("arguments", [[], ["--autoreload"]], ids=str)
@pytest.mark.parametrize("is_async", [False, True])
def test_signal_ends_a_start_that_takes_long(is_async, arguments, number, start, stuck_servicer):
    process = start(
        "--port", "0", *arguments, servicers=[stuck_servicer()], **{"async": is_async}
    )  # fmt: skip
    process.wait_for("importing")
    process.send(number)
    assert process.wait() == 0
    assert process.output.count(f"Received {number.name}.") == 1
    assert process.output.endswith("Graceful shutdown completed\n")
    assert "listening" not in process.output
    assert "Traceback" not in process.output


@pytest.mark.parametrize("is_async", [False, True])
def test_start_whose_end_the_project_swallows_does_not_get_to_listen(
    is_async, start, stuck_servicer, tmp_path
):
    path = tmp_path / "grpc.sock"
    process = start(
        f"unix:{path}", servicers=[stuck_servicer(swallows=True)], **{"async": is_async}
    )  # fmt: skip
    process.wait_for("importing")
    process.send(signal.SIGTERM)
    assert process.wait() == 0
    assert process.output.endswith("Graceful shutdown completed\n")
    assert "listening" not in process.output
    assert "Traceback" not in process.output
    assert not path.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_workers_whose_address_is_still_looked_for(number, start_patched, tmp_path):
    process = start_patched(
        """
        import time
        from django_grpc import _engine

        def bind(*args):
            print("resolving", flush=True)
            time.sleep(3600)

        _engine.bind = bind
        """,
        "--workers",
        "2",
    )
    process.wait_for("resolving")
    process.send(number)
    assert process.wait() == 0
    assert process.output.count(f"Received {number.name}.") == 1
    assert process.output.endswith("Graceful shutdown completed\n")
    assert "Traceback" not in process.output
