"""Sentry's SDK beside this server: its interceptors, and what it hears without them."""

import json
import re

import grpc
import pytest
from harness import listening, say_hello
from sampleapp import helloworld_pb2, helloworld_pb2_grpc

PATH = "/helloworld.Greeter/SayHello"
TRACE = "771a43a4192642f0b136d5159a501700"

# How the server's process tells what Sentry would be sent.
HOOK = """
import json

import sentry_sdk
from sampleapp.{module} import {greeter}
from sampleapp import helloworld_pb2_grpc
from sentry_sdk.transport import Transport

from django_grpc.signals import grpc_got_request_exception


class Printed(Transport):
    def capture_envelope(self, envelope):
        for item in envelope.items:
            if item.type in ("event", "transaction"):
                print("SENTRY", json.dumps(item.payload.json, default=str), flush=True)


sentry_sdk.init(
    dsn="http://key@127.0.0.1:9/1", transport=Printed, traces_sample_rate=1.0, {arguments}
)


def report(exception, **kwargs):
    sentry_sdk.capture_exception(exception)


if {reports}:
    grpc_got_request_exception.connect(report)


class Faulty({greeter}):
    {prefix} def SayHello(self, request, context):
        if request.name == "bad":
            raise ValueError("out of order")
        return {wait} super().SayHello(request, context)


def hook(server):
    helloworld_pb2_grpc.add_GreeterServicer_to_server(Faulty(), server)
"""

SYNC = {"module": "servicer", "greeter": "Greeter", "prefix": "", "wait": ""}
ASYNC = {
    "module": "async_servicer",
    "greeter": "AsyncGreeter",
    "prefix": "async",
    "wait": "await",
}
INTERCEPTOR = "sentry_sdk.integrations.grpc.server.ServerInterceptor"
AIO_INTERCEPTOR = "sentry_sdk.integrations.grpc.aio.server.ServerInterceptor"


@pytest.fixture
def serve(start, tmp_path):
    """Start a server in a process of its own, since the SDK patches what it finds."""

    def serve(names, arguments="", reports=False, **setting):
        text = HOOK.format(**names, arguments=arguments, reports=reports)
        (tmp_path / "sentry_hook.py").write_text(text)
        return start("--port", "0", servicers=["sentry_hook.hook"], **setting)

    return serve


def next_item(process):
    return json.loads(process.wait_for(r"^SENTRY (.*)").group(1))


def say(channel, name, metadata=()):
    stub = helloworld_pb2_grpc.GreeterStub(channel)
    return stub.SayHello(helloworld_pb2.HelloRequest(name=name), metadata=metadata, timeout=20)


@pytest.mark.parametrize(
    ("names", "interceptor"), [(SYNC, INTERCEPTOR), (ASYNC, AIO_INTERCEPTOR)], ids=["sync", "async"]
)
@pytest.mark.parametrize("reports", [False, True])
def test_interceptor(serve, names, interceptor, reports):
    process = serve(names, interceptors=[interceptor], reports=reports)
    with listening(process) as channel:
        metadata = [("sentry-trace", f"{TRACE}-b0e6f15b45c36b12-1")]
        assert say(channel, "World", metadata).message == "Hello, World!"
        transaction = next_item(process)
        assert transaction["type"] == "transaction"
        assert transaction["transaction"] == PATH
        assert transaction["contexts"]["trace"]["op"] == "grpc.server"
        assert transaction["contexts"]["trace"]["trace_id"] == TRACE

        with pytest.raises(grpc.RpcError, match="out of order"):
            say(channel, "bad", metadata)
        items = [next_item(process), next_item(process)]
        [event] = [it for it in items if "exception" in it]
        [transaction] = [it for it in items if it.get("type") == "transaction"]
        assert transaction["transaction"] == PATH
        exception = event["exception"]["values"][-1]
        assert (exception["type"], exception["value"]) == ("ValueError", "out of order")
        # The log has it when the interceptor is over; a receiver of the signal has it inside.
        is_inside = reports or names is ASYNC
        assert (event["contexts"]["trace"]["trace_id"] == TRACE) == is_inside

        with pytest.raises(grpc.RpcError, match="Cannot say hello to nobody"):
            say(channel, "nobody")
        transaction = next_item(process)  # an answer is no event, and the fault came once
        assert transaction["type"] == "transaction"


@pytest.mark.parametrize("names", [SYNC, ASYNC], ids=["sync", "async"])
def test_without_an_interceptor(serve, names):
    """A servicer's fault is an error in the log, which the SDK listens to by itself.

    The integration that patches `grpc.server` does not see this one, and breaks nothing.
    """
    arguments = (
        "integrations=[__import__('sentry_sdk.integrations.grpc', fromlist=['_'])"
        ".GRPCIntegration()]"
    )
    process = serve(names, arguments)
    with listening(process) as channel:
        assert say_hello(channel) == "Hello, World!"
        with pytest.raises(grpc.RpcError, match="out of order"):
            say(channel, "bad")
        event = next_item(process)
    assert event["logger"] == "django_grpc"
    assert event["exception"]["values"][-1]["value"] == "out of order"
    assert re.search("Faulty|SayHello", json.dumps(event["exception"]))
