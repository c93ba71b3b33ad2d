"""The servicer that both servers run: ordinary django-grpc code, no word about either."""

import time
from collections.abc import Iterator

import grpc

from cities import bench_pb2, bench_pb2_grpc
from cities.models import City
from cities.probe import probe
from django_grpc.serializers import serialize_model


class BenchServicer(bench_pb2_grpc.BenchServicer):
    """One method for each kind of work; see `bench.proto`."""

    def SayHello(
        self, request: bench_pb2.HelloRequest, context: grpc.ServicerContext
    ) -> bench_pb2.HelloReply:
        return bench_pb2.HelloReply(message=f"Hello, {request.name}!")

    def GetCity(
        self, request: bench_pb2.GetCityRequest, context: grpc.ServicerContext
    ) -> bench_pb2.City:
        return serialize_model(bench_pb2.City, City.objects.get(pk=request.id), [])

    def ListCities(
        self, request: bench_pb2.ListCitiesRequest, context: grpc.ServicerContext
    ) -> bench_pb2.CityList:
        cities = City.objects.order_by("pk")[: request.limit]
        return bench_pb2.CityList(
            cities=[serialize_model(bench_pb2.City, city, []) for city in cities]
        )

    def StreamCities(
        self, request: bench_pb2.ListCitiesRequest, context: grpc.ServicerContext
    ) -> Iterator[bench_pb2.City]:
        for city in City.objects.order_by("pk")[: request.limit].iterator():
            yield serialize_model(bench_pb2.City, city, [])

    def SumNumbers(
        self, request_iterator: Iterator[bench_pb2.Number], context: grpc.ServicerContext
    ) -> bench_pb2.Number:
        return bench_pb2.Number(value=sum(number.value for number in request_iterator))

    def EchoNumbers(
        self, request_iterator: Iterator[bench_pb2.Number], context: grpc.ServicerContext
    ) -> Iterator[bench_pb2.Number]:
        for number in request_iterator:
            yield bench_pb2.Number(value=number.value)

    def EchoBytes(self, request: bench_pb2.Blob, context: grpc.ServicerContext) -> bench_pb2.Blob:
        return bench_pb2.Blob(data=request.data)

    def Block(
        self, request: bench_pb2.BlockRequest, context: grpc.ServicerContext
    ) -> bench_pb2.Number:
        # Stands for a call that waits for a database or another service: off the GIL.
        time.sleep(request.milliseconds / 1000)
        return bench_pb2.Number(value=request.milliseconds)

    def Fail(
        self, request: bench_pb2.FailRequest, context: grpc.ServicerContext
    ) -> bench_pb2.HelloReply:
        if request.way == bench_pb2.FailRequest.RAISE:
            raise RuntimeError("asked to raise")
        if request.way == bench_pb2.FailRequest.ABORT:
            context.set_trailing_metadata((("reason", "asked"), ("detail-bin", b"\x00\x01")))
            context.abort(grpc.StatusCode.NOT_FOUND, "asked to abort")
        context.set_code(grpc.StatusCode.FAILED_PRECONDITION)
        context.set_details("asked to set a code")
        return bench_pb2.HelloReply(message="not an answer")

    def FailInStream(
        self, request: bench_pb2.FailRequest, context: grpc.ServicerContext
    ) -> Iterator[bench_pb2.HelloReply]:
        yield bench_pb2.HelloReply(message="before")
        yield self.Fail(request, context)

    def Probe(
        self, request: bench_pb2.ProbeRequest, context: grpc.ServicerContext
    ) -> bench_pb2.ProbeReply:
        return probe(self)


def grpc_hook(server: grpc.Server) -> None:
    """Registers the servicer (the dotted path in `GRPCSERVER['servicers']`)."""
    bench_pb2_grpc.add_BenchServicer_to_server(BenchServicer(), server)
