"""Making servers from the settings."""

import asyncio
import logging
import socket
import sys
import threading

import grpc
import pytest
from certificates import make_certificate
from django.core.exceptions import ImproperlyConfigured
from harness import PATIENCE
from sampleapp import helloworld_pb2, helloworld_pb2_grpc
from sampleapp.interceptors import Interceptor, OtherInterceptor
from sampleapp.servicer import grpc_hook

from django_grpc import addresses, building, conf, descriptions, utils
from django_grpc.addresses import parse_addrport

HOOK = "sampleapp.servicer.grpc_hook"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def running():
    """Start servers that have a port, and stop them at the end of the test."""
    servers = []

    def run(server):
        servers.append(server)
        server.start()
        return server

    yield run
    for server in servers:
        server.stop(0).wait(PATIENCE)


def say_hello(channel, name="World"):
    stub = helloworld_pb2_grpc.GreeterStub(channel)
    return stub.SayHello(helloworld_pb2.HelloRequest(name=name), timeout=PATIENCE).message


def test_created_server_serves_the_settings_servicers(settings, running):
    settings.GRPCSERVER = {"servicers": [HOOK]}
    port = free_port()
    running(building.create_server(2, port))
    with grpc.insecure_channel(f"localhost:{port}") as channel:
        assert say_hello(channel) == "Hello, World!"
        stub = helloworld_pb2_grpc.GreeterStub(channel)
        requests = [helloworld_pb2.HelloRequest(name=name) for name in ("a", "b")]
        assert [reply.message for reply in stub.SayHelloStreamReply(requests[0])] == [
            f"Hello number {number}, a!" for number in range(3)
        ]
        assert stub.SayHelloToAll(iter(requests)).message == "Hello, a and b!"
        replies = stub.SayHelloToEach(iter(requests))
        assert [reply.message for reply in replies] == ["Hello, a!", "Hello, b!"]


def test_signals_of_the_servicers_calls_are_sent(settings, running, signal_log):
    settings.GRPCSERVER = {"servicers": [HOOK], "host": "127.0.0.1"}
    port = free_port()
    running(building.create_server(2, port))
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        say_hello(channel)
        assert signal_log.until_finished() == ["started", "finished"]
        with pytest.raises(grpc.RpcError) as caught:
            say_hello(channel, "nobody")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert signal_log.until_finished() == ["started", "finished"]


class Rendezvous(helloworld_pb2_grpc.GreeterServicer):
    """Calls that return when `parties` of them run at once; notes how many that were at most."""

    def __init__(self, parties):
        self._barrier = threading.Barrier(parties)
        self._lock = threading.Lock()
        self._running = 0
        self.most = 0

    def SayHello(self, request, context):
        with self._lock:
            self._running += 1
            self.most = max(self.most, self._running)
        self._barrier.wait(PATIENCE)
        with self._lock:
            self._running -= 1
        return helloworld_pb2.HelloReply()


@pytest.mark.parametrize(("argument", "expected"), [(None, 3), (2, 2)])
def test_number_of_workers_is_the_arguments_or_the_settings(argument, expected, settings, started):
    settings.GRPCSERVER = {"servicers": [], "max_workers": 3}
    server = building.build_server(conf.load(), max_workers=argument)
    servicer = Rendezvous(expected)
    helloworld_pb2_grpc.add_GreeterServicer_to_server(servicer, server)
    stub = helloworld_pb2_grpc.GreeterStub(started(server))
    calls = [
        stub.SayHello.future(helloworld_pb2.HelloRequest(), timeout=PATIENCE)
        for _ in range(4 * expected)
    ]
    for call in calls:
        call.result()
    assert servicer.most == expected


def test_interceptors_are_the_settings_and_then_the_arguments(settings, running):
    settings.GRPCSERVER = {
        "servicers": [HOOK],
        "interceptors": ["sampleapp.interceptors.Interceptor"],
        "host": "127.0.0.1",
    }
    port = free_port()
    running(building.create_server(2, port, [OtherInterceptor()]))
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = helloworld_pb2_grpc.GreeterStub(channel)
        _, outcome = stub.SayHello.with_call(
            helloworld_pb2.HelloRequest(name="World"), timeout=PATIENCE
        )
    names = [value for key, value in outcome.trailing_metadata() if key == "by"]
    assert names == ["given", "configured"], "the setting's is the outer one"


def test_options_reach_the_server(settings, running):
    settings.GRPCSERVER = {
        "servicers": [HOOK],
        "host": "127.0.0.1",
        "options": [("grpc.max_receive_message_length", 100)],
    }
    port = free_port()
    running(building.create_server(2, port))
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        assert say_hello(channel) == "Hello, World!"
        with pytest.raises(grpc.RpcError) as caught:
            say_hello(channel, "x" * 200)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_port_is_shared_only_if_the_options_say_so(settings, running):
    settings.GRPCSERVER = {"servicers": [HOOK], "host": "127.0.0.1"}
    port = free_port()
    first = building.create_server(1, port)
    with pytest.raises((RuntimeError, OSError)):
        building.create_server(1, port)
    first.stop(0)
    settings.GRPCSERVER = {**settings.GRPCSERVER, "options": [("grpc.so_reuseport", 1)]}
    port = free_port()
    running(building.create_server(1, port))
    running(building.create_server(1, port))


def test_server_listens_on_a_unix_socket(settings, running, tmp_path):
    settings.GRPCSERVER = {"servicers": [HOOK], "host": f"unix:{tmp_path}/socket"}
    running(building.create_server(2, 0))
    with grpc.insecure_channel(f"unix:{tmp_path}/socket") as channel:
        assert say_hello(channel) == "Hello, World!"


def test_port_zero_gives_the_port_that_was_bound(settings):
    config = conf.ServerConfig(max_workers=1, host="127.0.0.1")
    server = building.build_server(config)
    assert 0 < building.bind(server, config, 0) < 65536
    server.stop(0)


@pytest.mark.parametrize(
    ("host", "port", "address"),
    [
        ("[::]", 50051, "[::]:50051"),
        ("::1", 1, "[::1]:1"),
        ("[::1]", 1, "[::1]:1"),
        ("127.0.0.1", "50051", "127.0.0.1:50051"),
        ("example.org", 0, "example.org:0"),
        ("unix:/run/app.sock", 50051, "unix:/run/app.sock"),
        ("unix-abstract:app", 50051, "unix-abstract:app"),
    ],
)
def test_addresses_are_written_as_grpc_does(host, port, address):
    assert addresses.format_address(host, port) == address


@pytest.fixture
def authority(tmp_path):
    return make_certificate(tmp_path, "authority")


def client_credentials(authority, client=None):
    return grpc.ssl_channel_credentials(
        authority.certificate_file.read_bytes(),
        client.key_file.read_bytes() if client else None,
        client.certificate_file.read_bytes() if client else None,
    )


def test_credentials_make_a_tls_server(settings, running, authority, tmp_path):
    server = make_certificate(tmp_path, "server", authority)
    settings.GRPCSERVER = {
        "servicers": [HOOK],
        "host": "127.0.0.1",
        "credentials": [
            {"private_key": server.key_file, "certificate_chain": str(server.certificate_file)}
        ],
    }
    port = free_port()
    running(building.create_server(2, port))
    with grpc.secure_channel(f"127.0.0.1:{port}", client_credentials(authority)) as channel:
        assert say_hello(channel) == "Hello, World!"
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel, pytest.raises(grpc.RpcError):
        say_hello(channel)


def test_client_without_a_certificate_is_refused_when_one_is_required(
    settings, running, authority, tmp_path
):
    server = make_certificate(tmp_path, "server", authority)
    client = make_certificate(tmp_path, "client", authority)
    settings.GRPCSERVER = {
        "servicers": [HOOK],
        "host": "127.0.0.1",
        "credentials": [
            {
                "private_key": server.key_file,
                "certificate_chain": server.certificate_file,
                "root_certificates": authority.certificate_file,
                "require_client_auth": True,
            }
        ],
    }
    port = free_port()
    running(building.create_server(2, port))
    with grpc.secure_channel(f"127.0.0.1:{port}", client_credentials(authority, client)) as channel:
        assert say_hello(channel) == "Hello, World!"
    with (
        grpc.secure_channel(f"127.0.0.1:{port}", client_credentials(authority)) as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        say_hello(channel)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("missing", ["private_key", "certificate_chain", "root_certificates"])
def test_file_that_cannot_be_read_is_named(missing, settings, tmp_path):
    paths = {}
    for name in ("private_key", "certificate_chain", "root_certificates"):
        paths[name] = tmp_path / name
        if name != missing:
            paths[name].write_text("text")
    settings.GRPCSERVER = {"servicers": [HOOK], "credentials": [paths]}
    with pytest.raises(ImproperlyConfigured) as caught:
        building.create_server(1, 0)
    assert str(caught.value) == (
        f"GRPCSERVER['credentials']: '{tmp_path / missing}' can't be read: "
        "No such file or directory."
    )


def test_hook_that_does_not_import_is_named(settings):
    settings.GRPCSERVER = {"servicers": ["sampleapp.nowhere.grpc_hook"]}
    with pytest.raises(ImproperlyConfigured, match=r"'sampleapp\.nowhere\.grpc_hook'"):
        building.create_server(1, 0)


def test_async_makes_a_server_of_asyncio(settings):
    settings.GRPCSERVER = {"servicers": [HOOK], "async": True, "host": "127.0.0.1"}

    async def run():
        server = building.create_server(1, 0)
        assert isinstance(server, grpc.aio.Server)
        await server.start()
        await server.stop(None)

    asyncio.run(run())


def test_uvloop_that_is_missing_is_one_sentence(settings, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvloop", None)
    settings.GRPCSERVER = {"servicers": [HOOK], "options": [("django_grpc.uvloop", 1)]}
    with pytest.raises(ImproperlyConfigured, match="needs the package uvloop"):
        building.create_server(1, 0)


def test_server_without_servicers_is_warned_about(settings, caplog):
    settings.GRPCSERVER = {"host": "127.0.0.1"}
    with caplog.at_level(logging.WARNING, "django_grpc"):
        building.create_server(1, 0)
    [record] = caplog.records
    assert "no servicers" in record.getMessage()


@pytest.mark.parametrize(
    ("port", "addrport", "expected"),
    [
        ("50051", None, ("::", 50051)),
        (1, 50052, ("::", 50052)),
        (1, "127.0.0.1:7", ("127.0.0.1", 7)),
        (1, "unix:/a", ("unix:/a", 0)),
    ],
)
def test_address_is_that_of_the_command_line_or_of_call_command(port, addrport, expected):
    assert parse_addrport("::", port, addrport) == expected


@pytest.mark.parametrize("port", [None, "x", -1, "-1", 65536, "²"])
def test_port_that_is_none_is_named(port):
    with pytest.raises(ValueError, match=f"{port} is not a port number"):
        parse_addrport("::", port, None)


@pytest.fixture
def hook(monkeypatch):
    """Give a function a path that settings can name."""

    def name(function):
        monkeypatch.setattr("sampleapp.servicer.another_hook", function, raising=False)
        return "sampleapp.servicer.another_hook"

    return name


def test_one_of_several_hooks_may_add_nothing(settings, hook, caplog):
    settings.GRPCSERVER = {"servicers": [HOOK, hook(lambda server: None)], "host": "127.0.0.1"}
    with caplog.at_level(logging.WARNING, "django_grpc"):
        building.create_server(1, 0)
    [record] = caplog.records
    assert "'sampleapp.servicer.another_hook' adds no servicer" in record.getMessage()


def test_a_stub_in_the_place_of_a_hook_is_told(settings):
    settings.GRPCSERVER = {"servicers": ["sampleapp.helloworld_pb2_grpc.GreeterStub"]}
    with pytest.raises(ImproperlyConfigured, match=r"GreeterStub' asks the server .*'unary_unary'"):
        building.create_server(1, 0)


def test_a_method_that_is_none_is_told(settings, hook):
    class Nothing(helloworld_pb2_grpc.GreeterServicer):
        SayHello = None

    def add(server):
        helloworld_pb2_grpc.add_GreeterServicer_to_server(Nothing(), server)

    settings.GRPCSERVER = {"servicers": [hook(add)], "host": "127.0.0.1"}
    server = building.create_server(1, 0)
    with pytest.raises(TypeError, match=r"/helloworld\.Greeter/SayHello"):
        server.start()


def test_an_address_in_use_that_a_hook_binds_is_told(settings, hook):
    """As each worker process does, after the first."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        settings.GRPCSERVER = {
            "servicers": [hook(lambda server: server.add_insecure_port(f"127.0.0.1:{port}"))]
        }
        with pytest.raises(ImproperlyConfigured) as caught:
            building.create_server(1, 0)
    text = str(caught.value)
    assert text.startswith("The hook 'sampleapp.servicer.another_hook'") or "another_hook" in text
    assert "calls add_insecure_port()" in text
    assert "Leave addresses to the command" in text


def test_limits_of_no_method_are_a_warning_beside_interceptors(settings, caplog):
    """One may continue with another method; hardly one does."""
    settings.GRPCSERVER = {
        "servicers": [HOOK],
        "interceptors": ["sampleapp.interceptors.Interceptor"],
        "methods": {"/helloworld.Greeter/sayHello": {"timeout": 1}},
    }
    config = conf.load()
    with caplog.at_level(logging.WARNING, "django_grpc"):
        building.check_methods(building.build_server(config), config)
    [record] = caplog.records
    assert "Did you mean '/helloworld.Greeter/SayHello'?" in record.getMessage()


def test_what_a_hook_adds_without_signals_counts(settings, hook, caplog):
    path = hook(lambda server: grpc_hook(server.server))
    settings.GRPCSERVER = {"servicers": [path], "host": "127.0.0.1"}
    with caplog.at_level(logging.WARNING, "django_grpc"):
        building.create_server(1, 0)
    assert not caplog.records


def test_interceptors_are_loaded_by_path_or_taken_as_they_are():
    given = OtherInterceptor()
    loaded, taken = building.load_interceptors(["sampleapp.interceptors.Interceptor", given])
    assert type(loaded) is Interceptor
    assert taken is given
    assert building.load_interceptors([]) == []
    with pytest.raises(ImproperlyConfigured, match=r"<object .*> is no grpc\.ServerInterceptor"):
        building.load_interceptors([object()])


def test_handlers_are_described_in_full(engine_server):
    server = engine_server()
    building.add_servicers(server, [HOOK])
    greeter, path = "sampleapp.servicer.Greeter", "/helloworld.Greeter"
    message = "helloworld.HelloRequest", "helloworld.HelloReply"
    assert list(descriptions.describe(server)) == [
        descriptions.MethodDescription(
            path=f"{path}/{name}",
            kind=kind,
            request=message[0],
            response=message[1],
            servicer=f"{greeter}.{name}",
            name=name,
            parameters=(parameter, "context"),
            is_implemented=name != "SayGoodbye",
        )
        for name, kind, parameter in (
            ("SayGoodbye", "unary_unary", "request"),
            ("SayHello", "unary_unary", "request"),
            ("SayHelloStreamReply", "unary_stream", "request"),
            ("SayHelloToAll", "stream_unary", "request_iterator"),
            ("SayHelloToEach", "stream_stream", "request_iterator"),
        )
    ]


def test_handlers_are_listed_one_line_each(engine_server):
    server = engine_server()
    building.add_servicers(server, [HOOK])
    lines = list(utils.extract_handlers(server))
    assert lines[0] == (
        "/helloworld.Greeter/SayGoodbye: SayGoodbye(request, context) unary_unary "
        "(helloworld.HelloRequest) -> (helloworld.HelloReply) "
        "sampleapp.servicer.Greeter.SayGoodbye NOT IMPLEMENTED"
    )
    assert lines[4] == (
        "/helloworld.Greeter/SayHelloToEach: SayHelloToEach(request_iterator, context) "
        "stream_stream (stream helloworld.HelloRequest) -> (stream helloworld.HelloReply) "
        "sampleapp.servicer.Greeter.SayHelloToEach"
    )


def test_methods_without_a_descriptor_are_described_by_their_codecs(engine_server):
    def echo(request, context):
        return request

    server = engine_server()
    server.add_registered_method_handlers(
        "plain.Service",
        {
            "Bytes": grpc.unary_unary_rpc_method_handler(echo),
            "Message": grpc.unary_unary_rpc_method_handler(
                echo,
                request_deserializer=helloworld_pb2.HelloRequest.FromString,
                response_serializer=lambda message: message.SerializeToString(),
            ),
        },
    )
    described = [(it.path, it.request, it.response) for it in descriptions.describe(server)]
    assert described == [
        ("/plain.Service/Bytes", "bytes", "bytes"),
        ("/plain.Service/Message", "helloworld.HelloRequest", "?"),
    ]


def test_service_that_is_added_twice_is_told(settings, hook, caplog):
    settings.GRPCSERVER = {"servicers": [HOOK, hook(grpc_hook)], "host": "127.0.0.1"}
    with caplog.at_level(logging.WARNING, "django_grpc"):
        building.create_server(1, 0)
    assert "The service helloworld.Greeter is added twice" in caplog.text
