"""A servicer with all four kinds of method, and the hook that registers it."""

import time

import grpc

from sampleapp import helloworld_pb2, helloworld_pb2_grpc


class Greeter(helloworld_pb2_grpc.GreeterServicer):
    def SayHello(self, request, context):
        if request.name == "nobody":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "Cannot say hello to nobody")
        return helloworld_pb2.HelloReply(message=f"Hello, {request.name}!")

    def SayHelloStreamReply(self, request, context):
        for number in range(3):
            yield helloworld_pb2.HelloReply(message=f"Hello number {number}, {request.name}!")
            if number == 0 and request.name.startswith("sleeper "):
                # A client knows by the first reply that the call is in flight.
                time.sleep(float(request.name.removeprefix("sleeper ")))

    def SayHelloToAll(self, request_iterator, context):
        names = " and ".join(request.name for request in request_iterator)
        return helloworld_pb2.HelloReply(message=f"Hello, {names}!")

    def SayHelloToEach(self, request_iterator, context):
        for request in request_iterator:
            yield helloworld_pb2.HelloReply(message=f"Hello, {request.name}!")


def grpc_hook(server):
    helloworld_pb2_grpc.add_GreeterServicer_to_server(Greeter(), server)


not_callable = "a string"


async def async_function(*arguments):
    raise AssertionError("nobody runs it")


def generator_function(*arguments):
    yield


class _AsyncCallable:
    async def __call__(self, *arguments):
        raise AssertionError("nobody runs it")


async_callable = _AsyncCallable()
