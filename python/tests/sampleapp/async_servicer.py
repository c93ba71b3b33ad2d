"""A servicer whose methods are coroutine functions and asynchronous generators, but for one."""

import asyncio

import grpc
from asgiref.sync import sync_to_async
from django.db import connection

from sampleapp import helloworld_pb2, helloworld_pb2_grpc
from sampleapp.models import Visitor


def query():
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        return cursor.fetchone()[0]


class AsyncGreeter(helloworld_pb2_grpc.GreeterServicer):
    async def SayHello(self, request, context):
        if request.name == "nobody":
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "Cannot say hello to nobody")
        if request.name == "query":
            assert await sync_to_async(query)() == 1
        if request.name == "count":
            return helloworld_pb2.HelloReply(message=str(await Visitor.objects.acount()))
        return helloworld_pb2.HelloReply(message=f"Hello, {request.name}!")

    async def SayHelloStreamReply(self, request, context):
        for number in range(3):
            yield helloworld_pb2.HelloReply(message=f"Hello number {number}, {request.name}!")
            if number == 0 and request.name.startswith("sleeper "):
                await asyncio.sleep(float(request.name.removeprefix("sleeper ")))

    def SayHelloToAll(self, request_iterator, context):
        names = " and ".join(request.name for request in request_iterator)
        return helloworld_pb2.HelloReply(message=f"Hello, {names}!")

    async def SayHelloToEach(self, request_iterator, context):
        async for request in request_iterator:
            await context.write(helloworld_pb2.HelloReply(message=f"Hello, {request.name}!"))


def grpc_hook(server):
    helloworld_pb2_grpc.add_GreeterServicer_to_server(AsyncGreeter(), server)
