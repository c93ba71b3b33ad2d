"""What the parent listens on: an address, a Unix socket, what systemd has bound; and TLS."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request

import grpc
import pytest
from certificates import make_certificate
from harness import LISTENING, PATIENCE, wait_until

from .support import Workers, ask, ask_once, begin, connect, free_port


def test_tls_is_the_workers(serve, tmp_path):
    authority = make_certificate(tmp_path, "authority")
    certified = make_certificate(tmp_path, "server", signed_by=authority)
    server = serve(
        credentials=[
            {
                "private_key": str(certified.key_file),
                "certificate_chain": str(certified.certificate_file),
            }
        ]
    )
    address = server.wait_up()
    roots = grpc.ssl_channel_credentials(authority.certificate_file.read_bytes())
    with connect(address, roots) as first, connect(address, roots) as second:
        assert ask(first)[0] != ask(second)[0]
        server.reload()
        assert ask(first)[0] in server.pids
    assert server.stop() == 0


def test_unix_socket_is_served_and_its_file_goes_with_the_server(serve, tmp_path):
    path = tmp_path / "grpc.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))  # and is not listened on any more
    server = serve(f"unix:{path}")
    server.process.wait_for("gRPC server is listening port unix:")
    address = f"unix:{path}"
    assert {ask_once(address)[0] for _ in range(4)} == set(server.pids)
    second = serve(f"unix:{path}")
    assert second.process.wait() == 1
    assert (
        f"can't listen on unix:{path}: it is already in use. Choose another one,"
        in second.process.output
    )
    server.reload()
    assert ask_once(address)[1] == "first"
    assert server.stop() == 0
    assert not path.exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--host", "a..b"], "The server can't listen on a..b:0: "),
        (["--host", "[::1"], "needs brackets around its IPv6 address"),
        (["unix:"], "The server can't listen on unix:: 'unix:' names no socket."),
        (["--metrics", "a..b:90"], "Metrics can't be served on a..b:90: "),
    ],
)
def test_what_is_no_address_is_one_sentence(serve, arguments, complaint):
    process = serve(*arguments).process
    assert process.wait() == 1
    assert process.output.count("CommandError: ") == 1
    assert complaint in process.output
    assert "Traceback" not in process.output


def test_abstract_socket_is_served(serve):
    name = f"django-grpc-test-{os.getpid()}"
    server = serve(f"unix-abstract:{name}")
    server.process.wait_for("gRPC server is listening")
    assert ask_once(f"unix-abstract:{name}")[1] == "first"


def test_both_families_are_listened_on(serve):
    server = serve(host="[::]")
    port = server.wait_up().split(":")[1]
    for address in (f"127.0.0.1:{port}", f"[::1]:{port}"):
        assert ask_once(address)[1] == "first"


def test_metrics_are_those_of_all_workers(serve):
    port = free_port()
    server = serve(metrics=f"127.0.0.1:{port}")
    address = server.wait_up()
    with connect(address) as first, connect(address) as second:
        for channel in (first, second):
            for _ in range(10):
                ask(channel)

        def calls():
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
                text = answer.read().decode()
            return sum(
                float(line.rpartition(" ")[2])
                for line in text.splitlines()
                if line.startswith("grpc_server_handled_total") and "SayHello" in line
            )

        wait_until(lambda: calls() == 20, "the calls of both")
        server.reload()
        assert calls() == 20, "those of processes that have ended count"
    assert server.stop() == 0


def test_successor_keeps_its_socket_when_its_predecessor_ends(serve, tmp_path):
    """It takes the path over while calls of the one before still run."""
    path = tmp_path / "grpc.sock"
    first = serve(f"unix:{path}")
    first.process.wait_for("gRPC server is listening port unix:")
    with connect(f"unix:{path}") as channel:
        call = begin(channel, "sleep 1")
        wait_until(lambda: _is_connected(path), "the call's connection")
        ask(channel)
        first.process.send(signal.SIGTERM)
        wait_until(lambda: not path.exists(), "the path")
        second = serve(f"unix:{path}")
        second.process.wait_for("gRPC server is listening port unix:")
        call.result()
    assert first.process.wait() == 0
    assert ask_once(f"unix:{path}")[1] == "first"
    assert second.stop() == 0
    assert not path.exists()


def _is_connected(path):
    with open("/proc/net/unix") as file:
        return sum(str(path) in line for line in file) > 1


def test_metrics_port_is_free_while_the_server_drains(serve):
    """A successor can start at once, and its figures are those that are told."""
    port = free_port()
    first = serve(metrics=f"127.0.0.1:{port}")
    with connect(first.wait_up()) as channel:
        call = begin(channel, "sleep 2")
        ask(channel)
        first.process.send(signal.SIGTERM)
        first.process.wait_for("Starting graceful shutdown")

        def is_free():
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) != 0

        wait_until(is_free, "the metrics port")
        assert not call.done()
        second = serve(metrics=f"127.0.0.1:{port}")
        second.wait_up()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/calls") as answer:
            processes = json.load(answer)["processes"]
        assert {it["pid"] for it in processes} <= set(second.pids)
        call.result()
    assert first.process.wait() == 0
    assert second.stop() == 0


def test_localhost_is_listened_on_in_both_families(serve):
    server = serve(host="localhost", metrics=f"localhost:{(port := free_port())}")
    call_port = server.wait_up().split(":")[1]
    for host in ("127.0.0.1", "[::1]"):
        assert ask_once(f"{host}:{call_port}")[1] == "first"
        with urllib.request.urlopen(f"http://{host}:{port}/livez") as answer:
            assert answer.read() == b"ok\n"


# Passes sockets on as systemd does, on descriptors from 3 on, and becomes the server.
ACTIVATE = """
import os, sys
passed = [int(it) for it in sys.argv[1].split()]
# First out of the way: one of them may be where another has to go.
copies = [os.dup(it) for it in passed]
moved = [os.dup2(copy, 100 + index) for index, copy in enumerate(copies)]
for index, descriptor in enumerate(moved):
    os.dup2(descriptor, 3 + index)
os.environ.update(
    LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(moved)), LISTEN_FDNAMES=sys.argv[2]
)
os.execv(sys.executable, [sys.executable, "-m", "django", "grpcserver", *sys.argv[3:]])
"""


@pytest.fixture
def activate(serve, tmp_path):
    """Start a server with sockets that are bound already; return its process."""
    processes = []

    def activate(sockets, names, *arguments, **environment):
        descriptors = [it.fileno() for it in sockets]
        process = subprocess.Popen(
            [
                *(sys.executable, "-c", ACTIVATE),
                *(" ".join(map(str, descriptors)), ":".join(names), *arguments),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            pass_fds=descriptors,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(
                    [
                        str(tmp_path),
                        os.path.dirname(os.path.dirname(__file__)),
                        os.environ.get("PYTHONPATH", ""),
                    ]
                ),
                "DJANGO_SETTINGS_MODULE": "process_settings",
                **environment,
            },
        )
        processes.append(process)
        return process

    Workers(tmp_path, "--no-such-flag").end()  # for its files
    yield activate
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


def listen_on(family=socket.AF_INET, address=("127.0.0.1", 0)):
    bound = socket.socket(family)
    bound.bind(address)
    bound.listen()
    return bound


@pytest.mark.parametrize("workers", ["1", "2"])
def test_sockets_of_systemd_are_served(workers, activate, tmp_path):
    with (
        listen_on() as tcp,
        listen_on(socket.AF_UNIX, str(tmp_path / "it.sock")) as unix,
        listen_on() as metrics,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified,
    ):
        notified.bind(str(tmp_path / "notify"))
        notified.settimeout(PATIENCE)
        process = activate(
            [tcp, unix, metrics],
            ["grpc", "grpc", "metrics"],
            "--workers",
            workers,
            NOTIFY_SOCKET=str(tmp_path / "notify"),
        )
        assert b"READY=1" in notified.recv(4096).split(b"\n")
        port, metrics_port = tcp.getsockname()[1], metrics.getsockname()[1]
        assert ask_once(f"127.0.0.1:{port}")[1] == "first"
        assert ask_once(f"unix:{tmp_path}/it.sock")[1] == "first"
        with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics") as answer:
            assert b"grpc_server" in answer.read()
        if workers == "2":
            process.send_signal(1)
            assert notified.recv(4096).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
            assert b"READY=1" in notified.recv(4096).split(b"\n")
        process.terminate()
        assert b"STOPPING=1" in notified.recv(4096).split(b"\n")
        assert process.wait(PATIENCE) == 0
        output = process.stdout.read()
        assert f"Address 127.0.0.1:{port}, unix:{tmp_path}/it.sock" in output
        assert (tmp_path / "it.sock").exists(), "it is systemd's"


@pytest.mark.parametrize("workers", [1, 2])
def test_sockets_for_another_process_are_not_taken(workers, serve):
    server = serve(
        workers=workers, environment={"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "a"}
    )
    port = server.process.wait_for(LISTENING).group(1)
    assert ask_once(f"127.0.0.1:{port}")[1] == "first"


@pytest.mark.parametrize(
    ("arguments", "setting", "texts"),
    [
        (["--workers", "-1"], {}, ["--workers must be"]),
        (["--port", "70000"], {}, ["--port must be a port number, 0 to 65535, not 70000."]),
        ([], {"host": "192.0.2.1"}, ["192.0.2.1:0", "it is not an address of this machine."]),
        ([], {"host": "no-such-host.invalid"}, ["no-such-host.invalid", "can't listen on"]),
        (["unix:/no/such/folder/it.sock"], {}, ["there is no folder /no/such/folder. Create it"]),
        ([f"unix:/tmp/{'a' * 200}"], {}, ["path is too long"]),
        (
            [],
            {"metrics": "192.0.2.1:0"},
            ["Metrics can't be served on 192.0.2.1:0", "Change --metrics"],
        ),
    ],
)
def test_mistake_is_one_sentence(arguments, setting, texts, serve):
    server = serve(*arguments, **setting)
    assert server.process.wait() == 1
    errors = [it for it in server.process.output.splitlines() if it.startswith("CommandError: ")]
    assert len(errors) == 1, server.process.output
    for text in texts:
        assert text in errors[0]
    assert "Traceback" not in server.process.output


def test_port_that_is_taken_is_one_sentence(serve):
    with listen_on() as taken:
        port = taken.getsockname()[1]
        server = serve("--port", str(port))
        assert server.process.wait() == 1
    assert f"127.0.0.1:{port}: it is already in use. Choose another one," in server.process.output


def test_port_may_be_shared_when_the_options_say_so(serve):
    port = str(free_port())
    options = [("grpc.so_reuseport", 1)]
    for _ in range(2):
        server = serve("--port", port, options=options)
        server.wait_up()
        assert ask_once(f"127.0.0.1:{port}")[1] == "first"


@pytest.mark.parametrize("workers", ["1", "2"])
def test_socket_of_systemd_that_is_not_there_is_one_sentence(workers, serve, tmp_path):
    Workers(tmp_path, "--no-such-flag").end()  # for its files
    run = subprocess.run(
        [
            *("/bin/sh", "-c", 'LISTEN_PID=$$ LISTEN_FDS=90 exec "$0" "$@"', sys.executable),
            *("-m", "django", "grpcserver", "--workers", workers),
        ],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(
                [str(tmp_path), os.path.dirname(os.path.dirname(__file__))]
            ),
            "DJANGO_SETTINGS_MODULE": "process_settings",
        },
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert run.returncode == 1
    assert "CommandError: LISTEN_FDS=90 names the file descriptor " in run.stderr
    assert "Traceback" not in run.stderr


def test_what_the_settings_start_gets_nothing_of_a_workers(serve, tmp_path):
    (tmp_path / "starting_settings.py").write_text(
        "import os\nfrom process_settings import *\n"
        f"os.system(f'ls -l /proc/self/fd > {tmp_path}/{{os.getpid()}}.txt')\n"
    )
    environment = {"DJANGO_SETTINGS_MODULE": "starting_settings"}
    server = serve(metrics="127.0.0.1:0", environment=environment)
    server.wait_up()
    assert len(server.pids) == 2
    for pid in server.pids:
        listed = (tmp_path / f"{pid}.txt").read_text()
        assert "/dev/null" in listed
        assert listed.count("socket:") <= 1, "the one on which it hears of the others"
        assert "eventfd" not in listed
        assert "memfd" not in listed
