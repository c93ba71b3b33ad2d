"""A servicer of each kind of call, at work in the database."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import grpc
from django.db import transaction

from catalog import catalog_pb2 as pb
from catalog import catalog_pb2_grpc
from catalog.models import Tag
from django_grpc.serializers import serialize_model


class Catalog(catalog_pb2_grpc.CatalogServicer):
    def GetTag(self, request: Any, context: Any) -> Any:
        context.set_trailing_metadata((("x-time-left", str(context.time_remaining())),))
        try:
            return serialize_model(pb.Tag, Tag.objects.get(pk=request.id))
        except Tag.DoesNotExist:
            context.abort(grpc.StatusCode.NOT_FOUND, f"no tag {request.id}")

    def ListTags(self, request: Any, context: Any) -> Iterator[Any]:
        for tag in Tag.objects.order_by("pk"):
            yield serialize_model(pb.Tag, tag)

    def AddTags(self, request_iterator: Iterable[Any], context: Any) -> Any:
        with transaction.atomic():
            names = [Tag.objects.create(name=request.name).name for request in request_iterator]
            if "bad" in names:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, "a bad tag")
        return pb.Summary(count=len(names), names=names)

    def FindTags(self, request_iterator: Iterable[Any], context: Any) -> Iterator[Any]:
        for request in request_iterator:
            yield from (
                serialize_model(pb.Tag, tag)
                for tag in Tag.objects.filter(name__startswith=request.name).order_by("pk")
            )


def grpc_hook(server: Any) -> None:
    """Register the servicer."""
    catalog_pb2_grpc.add_CatalogServicer_to_server(Catalog(), server)
