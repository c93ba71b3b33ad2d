"""A server with worker processes, and what can be asked of it."""

import contextlib
import os
import signal
import socket
from pathlib import Path

import grpc
from harness import LISTENING, PATIENCE, ServerProcess, wait_until
from sampleapp import helloworld_pb2

METHOD = "/helloworld.Greeter/SayHello"

# A servicer whose answers say which process gives them, and with which code.
HOOK = """
import os, time
from sampleapp import helloworld_pb2, helloworld_pb2_grpc
from sampleapp.servicer import Greeter

kept = []


class Telling(Greeter):
    def SayHello(self, request, context):
        verb, _, argument = request.name.partition(" ")
        if verb == "sleep":
            time.sleep(float(argument))
        elif verb == "die":
            os._exit(int(argument))
        elif verb == "grow":
            kept.append(os.urandom(int(argument) << 20))
        return helloworld_pb2.HelloReply(message=f"{{os.getpid()}} {answer}")


def grpc_hook(server):
    helloworld_pb2_grpc.add_GreeterServicer_to_server(Telling(), server)
"""


class Workers:
    """A `grpcserver` process with its workers."""

    def __init__(self, folder: Path, *arguments: str, environment=None, **setting) -> None:
        self._folder = folder
        self._seen: set[int] = set()
        self.setting = {"servicers": ["telling.grpc_hook"], "host": "127.0.0.1", **setting}
        self.write_hook("first")
        # Files that are written twice in a second look the same to Python's cache.
        variables = {"PYTHONDONTWRITEBYTECODE": "1", **(environment or {})}
        self.process = ServerProcess(folder, *arguments, setting=self.setting, **variables)

    def write_hook(self, answer: str | None, text: str = HOOK) -> None:
        (self._folder / "telling.py").write_text(
            text.replace("{answer}", str(answer)).replace("{{", "{").replace("}}", "}")
        )

    def write_setting(self, **setting) -> None:
        """Change the settings, for whoever reads them next."""
        self.setting.update(setting)
        (self._folder / "process_settings.py").write_text(
            f"from settings import *\n\nGRPCSERVER = {self.setting!r}\n"
        )

    @property
    def pid(self) -> int:
        return self.process._process.pid

    @property
    def pids(self) -> list[int]:
        """The processes that the parent has, those that begin or end among them."""
        try:
            text = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        except FileNotFoundError:
            return []
        found = [int(it) for it in text.split()]
        self._seen.update(found)
        return found

    def wait_up(self) -> str:
        """Wait until all workers serve, and return the address."""
        port = self.process.wait_for(LISTENING).group(1)
        self._seen.update(self.pids)
        return f"127.0.0.1:{port}"

    def wait_for_pids(self, condition) -> list[int]:
        """Wait until the parent's processes are as they ought to be."""
        return wait_until(lambda: condition(self.pids) and (self.pids or [0]), "the processes")

    def reload(self) -> None:
        self.process.send(signal.SIGHUP)
        self.process.wait_for("ha(ve|s) been restarted")

    def stop(self) -> int:
        self.process.send(signal.SIGTERM)
        return self.process.wait()

    def end(self) -> None:
        self._seen.update(self.pids)
        # The parent first, which would replace them; but its output ends with the last of them.
        self.process.send(signal.SIGKILL)
        for pid in self._seen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.end()


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def connect(address: str, credentials: grpc.ChannelCredentials | None = None) -> grpc.Channel:
    """Open a channel with a connection of its own."""
    options = (("grpc.use_local_subchannel_pool", 1),)
    if credentials is None:
        return grpc.insecure_channel(address, options)
    return grpc.secure_channel(address, credentials, options)


def begin(channel: grpc.Channel, name: str = ""):
    """Begin a call, and return its future."""
    call = channel.unary_unary(METHOD, response_deserializer=helloworld_pb2.HelloReply.FromString)
    request = helloworld_pb2.HelloRequest(name=name).SerializeToString()
    return call.future(request, timeout=PATIENCE, wait_for_ready=True)


def ask(channel: grpc.Channel, name: str = "") -> tuple[int, str]:
    """Make a call, and return the process that answered and what it said."""
    pid, _, answer = begin(channel, name).result().message.partition(" ")
    return int(pid), answer


def ask_once(address: str, name: str = "") -> tuple[int, str]:
    """Make a call on a connection of its own."""
    with connect(address) as channel:
        return ask(channel, name)


def is_gone(pid: int) -> bool:
    """Whether no process has the id any more."""
    return not is_alive(pid)


def free_port() -> int:
    """Find a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def can_connect(port: int) -> bool:
    """Whether somebody listens on a port."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE).close()
    except ConnectionRefusedError:
        return False
    return True
