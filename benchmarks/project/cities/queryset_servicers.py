"""The servicer of `benchmarks/querysets.py`: ours only, as django-grpc has nothing like it."""

from collections.abc import Iterator

import grpc

from cities import bench_pb2, bench_pb2_grpc
from cities.models import City
from cities.servicers import BenchServicer
from django_grpc.serializers import serialize_queryset


class QuerysetServicer(BenchServicer):
    """Answers with the same messages, from rows instead of instances."""

    def ListCities(  # noqa: N802 - the method's name in the service
        self, request: bench_pb2.ListCitiesRequest, context: grpc.ServicerContext
    ) -> bench_pb2.CityList:
        cities = City.objects.order_by("pk")[: request.limit]
        return serialize_queryset(bench_pb2.CityList, cities, field="cities")

    def StreamCities(  # noqa: N802
        self, request: bench_pb2.ListCitiesRequest, context: grpc.ServicerContext
    ) -> Iterator[bench_pb2.City]:
        return serialize_queryset(bench_pb2.City, City.objects.order_by("pk")[: request.limit])


def grpc_hook(server: grpc.Server) -> None:
    """Registers the servicer (the dotted path in `GRPCSERVER['servicers']`)."""
    bench_pb2_grpc.add_BenchServicer_to_server(QuerysetServicer(), server)
