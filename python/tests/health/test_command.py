"""`manage.py grpchealth`."""

import io
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from certificates import make_certificate
from django.core.management import call_command
from django.core.management.base import CommandError
from harness import LISTENING, PATIENCE

from django_grpc import engine

from .support import NOT_SERVING, SERVING


def ask(capsys, *arguments, timeout=PATIENCE):
    """Ask, and return what it printed."""
    call_command("grpchealth", "--timeout", str(timeout), *arguments)
    return capsys.readouterr().out


def complaint(*arguments, timeout=PATIENCE):
    """Ask in vain, and return the reason that is printed."""
    with pytest.raises(CommandError) as caught:
        call_command("grpchealth", "--timeout", str(timeout), *arguments)
    assert caught.value.returncode == 1
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def serve(engine_server):
    """Start a server on an address; returns it and the address."""
    servers = []

    def serve(address="127.0.0.1:0", credentials=None, has_health=True):
        server = engine_server()
        if has_health:
            server.enable_health()
        if credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
        server.start()
        servers.append(server)
        return server, address.replace(":0", f":{port}")

    yield serve
    for server in servers:
        server.stop(0).wait(PATIENCE)


def test_server_that_serves(serve, capsys):
    server, address = serve()
    server.health.set_status("a.B", SERVING)
    assert ask(capsys, "--addr", address) == "SERVING\n"
    assert ask(capsys, "--addr", address, "--service", "a.B") == "SERVING\n"


def test_server_that_does_not_serve(serve):
    server, address = serve()
    server.health.set_status("a.B", NOT_SERVING)
    assert complaint("--addr", address, "--service", "a.B") == (
        f"The service a.B at {address} is NOT_SERVING."
    )
    server.announce_shutdown()
    assert complaint("--addr", address) == f"The server at {address} is NOT_SERVING."


def test_service_that_is_unknown(serve):
    _, address = serve()
    said = complaint("--addr", address, "--service", "no.Such")
    assert said == f"The server at {address} knows no service no.Such."


def test_server_without_health(serve):
    _, address = serve(has_health=False)
    said = complaint("--addr", address)
    assert said.startswith(f"The server at {address} has no health service")


@pytest.fixture
def deaf():
    """The address of something that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def test_nobody_there():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    assert complaint("--addr", address).startswith(f"The server at {address} can't be asked: UNAV")


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "", ":50051", "localhost:", "[::1]", "::1:50051", "localhost:0",
     "127.0.0.1:99999", "http://localhost:50051", "localhost:" + "9" * 5000],
)  # fmt: skip
def test_address_without_a_port_is_refused(address):
    """And not asked on port 443, or on a number's lower 16 bits."""
    said = complaint("--addr", address, timeout=0.2)
    assert f"{address!r} is neither HOST:PORT nor unix:PATH" in said


@pytest.mark.parametrize("prefix", ["", "dns:", "dns:///", "ipv4:"])
def test_addresses_as_grpc_writes_them(prefix, serve, capsys):
    _, address = serve()
    assert ask(capsys, "--addr", prefix + address) == "SERVING\n"


@pytest.mark.parametrize("arguments", [(), ("--watch",)])
def test_server_that_does_not_answer(arguments, deaf):
    said = complaint("--addr", deaf, *arguments, timeout=0.2)
    assert said == f"The server at {deaf} has not answered within 0.2 s."


def test_unix_socket_of_the_settings(serve, settings, capsys, tmp_path):
    address = f"unix:{tmp_path}/s"
    serve(address)
    settings.GRPCSERVER = {"host": address}
    assert ask(capsys) == "SERVING\n"


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("[::]", "localhost:50051"),
        ("0.0.0.0", "127.0.0.1:50051"),  # noqa: S104
        ("::1", "[::1]:50051"),
        ("10.0.0.7", "10.0.0.7:50051"),
    ],
)
def test_address_of_the_settings(host, address, settings, monkeypatch):
    asked = []
    monkeypatch.setattr("grpc.insecure_channel", lambda it, _: asked.append(it) or stop())

    def stop():
        raise CommandError("asked")

    settings.GRPCSERVER = {"host": host}
    assert complaint() == "asked"
    assert asked == [address]


def test_mistake_in_the_settings(settings):
    settings.GRPCSERVER = {"hosts": "x"}
    assert "GRPCSERVER has no key 'hosts'" in complaint()


@pytest.fixture
def certified(tmp_path):
    """An authority, a server's and a client's certificate."""
    authority = make_certificate(tmp_path, "authority")
    return (
        authority,
        make_certificate(tmp_path, "server", authority),
        make_certificate(tmp_path, "client", authority),
    )


def test_tls(serve, capsys, certified):
    authority, server, client = certified
    credentials = engine.ssl_server_credentials(
        [(server.key_file.read_bytes(), server.certificate_file.read_bytes())],
        authority.certificate_file.read_bytes(),
        True,
    )
    _, address = serve(credentials=credentials)
    trusted = ["--addr", address, "--tls", "--tls-ca-cert", str(authority.certificate_file)]
    shown = [
        "--tls-client-cert",
        str(client.certificate_file),
        "--tls-client-key",
        str(client.key_file),
    ]
    assert ask(capsys, *trusted, *shown) == "SERVING\n"
    named = ["--tls-server-name", "localhost"]
    assert ask(capsys, *trusted, *shown, *named) == "SERVING\n"
    for arguments in (
        trusted,  # shows no certificate
        ["--addr", address],  # plaintext
        ["--addr", address, "--tls", *shown],  # trusts others
        [*trusted, *shown, "--tls-server-name", "elsewhere.example"],
    ):
        said = complaint(*arguments)
        assert "can't be asked: UNAVAILABLE" in said
        assert said.endswith(". Does it want --tls?") == ("--tls" not in arguments)
    # By what gRPC's core says of the refusal: at times that is a socket that is closed.
    refused = [complaint(*trusted) for _ in range(10)]
    assert any("want a certificate (--tls-client-cert and" in said for said in refused)


def test_the_hint_is_the_one_that_helps(serve):
    _, address = serve()
    assert complaint("--addr", address, "--tls").endswith(". Is it without TLS?")
    for elsewhere in ("127.0.0.1:1", "unix:/nope", "dns:///nowhere.invalid:1"):
        assert "TLS" not in complaint("--addr", elsewhere, timeout=2).upper()


def test_files_that_can_not_be_used_are_named(certified, tmp_path):
    authority, server, client = map(str, (it.certificate_file for it in certified))
    key = str(certified[2].key_file)
    text = tmp_path / "text.pem"
    text.write_text("no certificate")
    tls = ["--addr", "localhost:1", "--tls"]
    assert complaint(*tls, "--tls-ca-cert", str(text)) == (
        f"--tls-ca-cert: '{text}' holds no PEM certificate."
    )
    for chain in (server, str(text)):
        shown = ["--tls-client-cert", chain, "--tls-client-key", key]
        assert f"'{chain}' and '{key}' are no PEM certificate and its" in complaint(*tls, *shown)
    shown = ["--tls-client-cert", client, "--tls-client-key", key, "--tls-ca-cert", authority]
    assert "can't be asked: UNAVAILABLE" in complaint(*tls, *shown)


def test_tls_of_the_settings(serve, capsys, certified, settings):
    """The certificate that the server shows is known, so its authority need not be."""
    _, server, _ = certified
    key_pair = {
        "private_key": str(server.key_file),
        "certificate_chain": str(server.certificate_file),
    }
    credentials = engine.ssl_server_credentials(
        [(server.key_file.read_bytes(), server.certificate_file.read_bytes())]
    )
    _, address = serve(credentials=credentials)
    port = int(address.rpartition(":")[2])
    settings.GRPCSERVER = {"host": "127.0.0.1", "port": port, "credentials": [key_pair]}
    assert ask(capsys) == "SERVING\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tls-ca-cert", "x"], "--tls-ca-cert needs --tls."),
        (["--tls", "--tls-client-cert", "x"], "--tls-client-cert and --tls-client-key go together"),
        (["--tls", "--tls-ca-cert", "no.such.file"], "'no.such.file' can't be read: No such file"),
    ],
)
def test_mistake_in_the_flags(arguments, said):
    assert complaint("--addr", "127.0.0.1:1", *arguments).startswith(said)


@pytest.mark.parametrize("timeout", ["0", "-1", "nan", "inf", "abc"])
def test_timeout_that_is_none(timeout):
    with pytest.raises(CommandError, match="is not a number of seconds above 0"):
        call_command("grpchealth", "--timeout", timeout)


@pytest.mark.parametrize("arguments", [[], ["--watch"]], ids=str)
def test_timeout_of_more_than_a_century(arguments, serve):
    _, address = serve()
    with pytest.raises(CommandError, match="is more than 3153600000 seconds, a century"):
        call_command("grpchealth", "--addr", address, "--timeout", "3153600001", *arguments)


def test_timeout_of_a_century(serve, capsys):
    _, address = serve()
    assert ask(capsys, "--addr", address, timeout=3153600000) == "SERVING\n"


@pytest.mark.parametrize("name", ["--addr", "--service", "--tls-server-name"])
def test_argument_that_is_not_utf_8(name):
    with pytest.raises(CommandError, match=f"{name}: .* is not UTF-8"):
        call_command("grpchealth", "--addr", "127.0.0.1:1", name, os.fsdecode(b"\xff"))


def test_watch_prints_each_change(serve):
    server, address = serve()
    lines = []
    changed = threading.Event()

    class Output:
        def write(self, text):
            lines.append(text.strip())
            if text.strip() == "SERVING" and len(lines) == 1:
                server.announce_shutdown()
            elif text.strip() == "NOT_SERVING":
                changed.set()
                server.stop(0)

        def flush(self):
            pass

    with pytest.raises(CommandError, match="can't be asked: UNAVAILABLE"):
        call_command("grpchealth", "--addr", address, "--watch", stdout=Output())
    assert changed.is_set()
    assert [line for line in lines if line] == ["SERVING", "NOT_SERVING"]


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "django", "grpchealth", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        timeout=PATIENCE,
        check=False,
    )


def test_exit_status_of_the_process(start):
    process = start("--port", "0", health={"checks": []})
    address = f"127.0.0.1:{process.wait_for(LISTENING).group(1)}"
    asked = run("--addr", address, "--timeout", str(PATIENCE))
    assert (asked.returncode, asked.stdout, asked.stderr) == (0, "SERVING\n", "")
    asked = run("--addr", address, "--service", "no.Such", "--timeout", str(PATIENCE))
    assert asked.returncode == 1
    assert re.fullmatch(
        r"CommandError: The server at .* knows no service no\.Such\.\n", asked.stderr
    )
    process.send(signal.SIGTERM)
    process.wait()
    assert run("--addr", address).returncode == 1


def test_probe_loads_no_engine():
    """It has to be quick, and small."""
    program = (
        "import sys\n"
        "from django.core.management import call_command, CommandError\n"
        "import django\n"
        "django.setup()\n"
        "try:\n"
        "    call_command('grpchealth', '--addr', '127.0.0.1:1')\n"
        "except CommandError:\n"
        "    print([it for it in sys.modules if it.startswith(('django_grpc.engine',"
        " 'django_grpc._engine'))])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=True,
    )
    assert done.stdout == "[]\n"


def test_lost_output_changes_no_status(serve):
    _, address = serve()
    with open("/dev/full", "wb", buffering=0) as full:
        output = io.TextIOWrapper(full, write_through=True)
        call_command("grpchealth", "--addr", address, stdout=output)


def test_watch_may_be_interrupted(serve):
    _, address = serve()
    # A shell's jobs in the background ignore the signal, and so would this.
    source = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from django.core.management import execute_from_command_line\n"
        f"execute_from_command_line(['', 'grpchealth', '--addr', '{address}', '--watch'])\n"
    )
    probe = subprocess.Popen(
        [sys.executable, "-c", source],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "settings",
            "PYTHONPATH": str(Path(__file__).parents[1]),
        },
        start_new_session=True,
    )
    assert probe.stdout.readline() == "SERVING\n"
    probe.send_signal(signal.SIGINT)
    _, said = probe.communicate(timeout=PATIENCE)
    assert (probe.returncode, said) == (130, "CommandError: Interrupted.\n")
