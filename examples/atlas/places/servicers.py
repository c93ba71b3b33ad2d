"""The Atlas service: what each call of atlas.proto does.

A servicer is plain code with Django's ORM at hand. Each call runs on one worker thread from its
first line to its last, generators included, so transactions and cursors behave as in a view.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import grpc
from django.db import connection
from django.db.models import Count
from django_grpc.serializers import serialize_model

from places.importing import RowError, import_cities
from places.models import City, Country
from places.nearest import nearest_city
from places.pb import atlas_pb2 as pb
from places.pb import atlas_pb2_grpc as pb_grpc
from places.queries import PageTokenError, matching, page_of
from places.serializers import SERIALIZERS

logger = logging.getLogger(__name__)

REQUEST_ID = "x-request-id"
STREAM_CHUNK = 500


class AtlasServicer(pb_grpc.AtlasServicer):
    """Countries and cities out of the database."""

    def About(self, request: pb.AboutRequest, context: grpc.ServicerContext) -> pb.AboutResponse:
        """Unary, one message in and one out."""
        return pb.AboutResponse(
            countries=Country.objects.count(),
            cities=City.objects.count(),
            database=connection.vendor,
        )

    def GetCity(self, request: pb.GetCityRequest, context: grpc.ServicerContext) -> pb.City:
        """Unary, with a status when there is no answer, and with metadata both ways."""
        # Metadata is to a call what headers are to a request. A client may number its calls to find
        # them again in logs; it gets its number back, ahead of the answer.
        context.send_initial_metadata(
            tuple((key, value) for key, value in context.invocation_metadata() if key == REQUEST_ID)
        )
        # Trailing metadata goes out after the answer, with the status.
        context.set_trailing_metadata((("atlas-database", connection.vendor),))

        key = request.WhichOneof("key")
        if key is None:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "Set id or geoname_id.")
        try:
            city = City.objects.get(**{key: getattr(request, key)})
        except City.DoesNotExist:
            # abort() raises: nothing after it runs, and nothing has to be returned.
            context.abort(
                grpc.StatusCode.NOT_FOUND, f"There is no city with {key} {getattr(request, key)}."
            )
        return serialize_model(pb.City, city, SERIALIZERS)

    def GetCountry(
        self, request: pb.GetCountryRequest, context: grpc.ServicerContext
    ) -> pb.Country:
        """Unary, with messages nested in the answer."""
        try:
            country = Country.objects.annotate(city_count=Count("cities")).get(
                pk=request.code.upper()
            )
        except Country.DoesNotExist:
            context.abort(grpc.StatusCode.NOT_FOUND, f"There is no country {request.code!r}.")
        return serialize_model(pb.Country, country, SERIALIZERS)

    def ListCities(
        self, request: pb.ListCitiesRequest, context: grpc.ServicerContext
    ) -> pb.ListCitiesResponse:
        """Unary, one page at a time: for clients that show or keep a list."""
        if request.page_size < 0:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "page_size is negative.")
        try:
            cities, next_page_token = page_of(request)
        except PageTokenError:
            context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                "page_token is not from the page before, with this filter.",
            )
        return pb.ListCitiesResponse(
            cities=[serialize_model(pb.City, city, SERIALIZERS) for city in cities],
            next_page_token=next_page_token,
            total_size=matching(request.filter).count(),
        )

    def StreamCities(
        self, request: pb.StreamCitiesRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.City]:
        """Server stream: a generator, resumed only as fast as the client reads.

        ``iterator()`` fetches rows in chunks (on PostgreSQL from a server-side cursor) instead of
        keeping them all, so the memory that this takes doesn't depend on how many there are.
        """
        try:
            for city in matching(request.filter).iterator(chunk_size=STREAM_CHUNK):
                yield serialize_model(pb.City, city, SERIALIZERS)
        except GeneratorExit:
            # The client cancelled, went away or ran out of time, and the generator is closed where
            # it stands. Catching this is needed only to tell; `finally` and `with` blocks run too.
            logger.info("StreamCities: the client left before the end")
            raise

    def ImportCities(
        self, request_iterator: Iterator[pb.NewCity], context: grpc.ServicerContext
    ) -> pb.ImportCitiesResponse:
        """Client stream: messages are read by iterating, the answer is what is returned."""
        try:
            return import_cities(request_iterator)
        except RowError as error:
            # Here the transaction is over, so whoever sees this answer sees no row either.
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"Nothing was imported: {error}")

    def NearestCity(
        self, request_iterator: Iterator[pb.Point], context: grpc.ServicerContext
    ) -> Iterator[pb.NearestCityResponse]:
        """Bidirectional stream: each answer goes out before the next question is waited for."""
        for point in request_iterator:
            if not (-90 <= point.latitude <= 90 and -180 <= point.longitude <= 180):
                context.abort(
                    grpc.StatusCode.INVALID_ARGUMENT,
                    f"There is no such point: {point.latitude}, {point.longitude}.",
                )
            try:
                city, distance_km = nearest_city(point.latitude, point.longitude)
            except City.DoesNotExist:
                context.abort(grpc.StatusCode.FAILED_PRECONDITION, "The atlas holds no cities.")
            yield pb.NearestCityResponse(
                city=serialize_model(pb.City, city, SERIALIZERS), distance_km=distance_km
            )


def grpc_hook(server: grpc.Server) -> None:
    """Register the servicer; ``GRPCSERVER["servicers"]`` in the settings names this function."""
    pb_grpc.add_AtlasServicer_to_server(AtlasServicer(), server)
