"""`manage.py grpcserver` with async methods, whatever `GRPCSERVER['async']` says."""

import signal

import grpc
import pytest
from harness import LISTENING, PATIENCE, begin_sleep, listening, say_hello
from sampleapp import helloworld_pb2, helloworld_pb2_grpc

HOOK = "sampleapp.async_servicer.grpc_hook"


@pytest.mark.parametrize("is_async", [True, False])
def test_methods_of_both_kinds_are_served(start, is_async):
    process = start("--port", "0", servicers=[HOOK], **{"async": is_async})
    with listening(process) as channel:
        assert say_hello(channel) == "Hello, World!"
        assert say_hello(channel, "query") == "Hello, query!"
        with pytest.raises(grpc.RpcError, match="Cannot say hello to nobody"):
            say_hello(channel, "nobody")
        stub = helloworld_pb2_grpc.GreeterStub(channel)
        people = [helloworld_pb2.HelloRequest(name=name) for name in ("Ada", "Bob")]
        replies = stub.SayHelloStreamReply(people[0], timeout=PATIENCE)
        assert len(list(replies)) == 3
        reply = stub.SayHelloToAll(iter(people), timeout=PATIENCE)
        assert reply.message == "Hello, Ada and Bob!"
        replies = stub.SayHelloToEach(iter(people), timeout=PATIENCE)
        assert [it.message for it in replies] == ["Hello, Ada!", "Hello, Bob!"]
        process.send(signal.SIGTERM)
        assert process.wait() == 0
    assert process.output.endswith("Graceful shutdown completed\n")
    for complaint in ("Traceback", "never retrieved", "was destroyed", "ResourceWarning"):
        assert complaint not in process.output


@pytest.mark.parametrize("is_async", [True, False])
def test_drain_lets_calls_end(start, is_async):
    process = start("--port", "0", servicers=[HOOK], **{"async": is_async})
    with listening(process) as channel:
        call = begin_sleep(channel, 0.5)
        process.send(signal.SIGTERM)
        assert len(list(call)) == 2
        assert process.wait() == 0


@pytest.mark.parametrize("is_async", [True, False])
def test_end_of_the_grace_cancels_calls(start, is_async):
    process = start("--port", "0", "--grace", "0.2", servicers=[HOOK], **{"async": is_async})
    with listening(process) as channel:
        call = begin_sleep(channel, 100)
        process.send(signal.SIGTERM)
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert process.wait() == 0
    assert "Traceback" not in process.output


def test_handlers_are_listed(start):
    process = start("--list-handlers", servicers=[HOOK], **{"async": True})
    process.wait_for(r"SayHelloToEach.*AsyncGreeter")
    assert process.wait() == 0


def test_reflection(start):
    process = start("--port", "0", servicers=[HOOK], **{"async": True, "reflection": True})
    with listening(process) as channel:
        from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        (answer,) = stub.ServerReflectionInfo(iter([request]), timeout=PATIENCE)
        names = [it.name for it in answer.list_services_response.service]
    assert "helloworld.Greeter" in names


def test_autoreload(start, tmp_path):
    module = tmp_path / "reloaded_hook.py"
    module.write_text(f"from {HOOK.rpartition('.')[0]} import grpc_hook\n")
    process = start(
        "--port", "0", "--autoreload", servicers=["reloaded_hook.grpc_hook"], **{"async": True}
    )
    with listening(process) as channel:
        assert say_hello(channel) == "Hello, World!"
    module.write_text(module.read_text() + "# changed\n")
    process.wait_for(LISTENING, nudge=module.touch)
