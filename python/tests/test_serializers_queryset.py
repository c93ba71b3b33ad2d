"""Querysets straight to the wire: the same messages as serialize_model makes, from rows."""

from __future__ import annotations

import datetime
import random
import uuid
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import grpc
import pytest
from catalog import catalog_pb2 as pb
from catalog import rows_pb2
from catalog.models import City, Manual, Note, Payment, Product, Review, Supplier, Tag
from django.db import connection
from django.db.models import BigIntegerField, Count, F, Value
from django.db.models.fields.files import FieldFile
from django.db.models.functions import Upper
from django.test.utils import CaptureQueriesContext

from django_grpc.serializers import (
    BaseModelSerializer,
    SerializationError,
    SerializedMessage,
    serialize_model,
    serialize_queryset,
)

pytestmark = pytest.mark.django_db

NOON = datetime.datetime(2024, 2, 29, 12, 0, 0, 250_000, tzinfo=datetime.UTC)


def streamed(message_class: Any, queryset: Any) -> list[Any]:
    """The messages of a stream."""
    return [item.message() for item in serialize_queryset(message_class, queryset)]


def one(message_class: Any, queryset: Any) -> Any:
    """The only message of a stream."""
    (message,) = streamed(message_class, queryset)
    return message


def assert_same(message_class: Any, queryset: Any) -> None:
    """Assert that rows become byte for byte what instances become."""
    rows = [bytes(item) for item in serialize_queryset(message_class, queryset)]
    messages = [serialize_model(message_class, it) for it in queryset]
    assert [message_class.FromString(row) for row in rows] == messages
    assert rows == [it.SerializeToString(deterministic=True) for it in messages]


@pytest.fixture
def cities() -> list[City]:
    return City.objects.bulk_create(
        City(
            name=f"{'Zürich' if number % 2 else 'A' * (number % 100)}",
            country="CH",
            population=number * 1000 - 500,
            latitude=number / 7,
            longitude=-number / 7,
            timezone="",
            capital=number % 3 == 0,
        )
        for number in range(250)
    )


# Random rows

RANDOM = random.Random(20240229)  # noqa: S311 - not for secrets


def any_text() -> str:
    letters = "aé漢😀 \n" + "b" * 5
    return "".join(RANDOM.choice(letters) for _ in range(RANDOM.choice((0, 1, 5, 40, 140))))


def any_instant() -> datetime.datetime:
    zone = datetime.timezone(datetime.timedelta(minutes=RANDOM.choice((0, 330, -480))))
    moment = datetime.datetime(1, 1, 3) + datetime.timedelta(
        days=RANDOM.randrange(3_652_050),
        microseconds=RANDOM.choice((0, 1, 999_999, 86_399_123_456)),
    )
    return moment.replace(tzinfo=zone)


def any_json() -> Any:
    return RANDOM.choice(
        (
            {},
            {"colour": "red", "sizes": [1, 2.5, None, {"deep": True}]},
            {"a" * 130: {"é": []}},
        )
    )


def any_product(suppliers: list[Supplier]) -> Product:
    def maybe(make: Callable[[], Any]) -> Any:
        return make() if RANDOM.random() < 0.8 else None

    def chosen(*values: Any) -> Callable[[], Any]:
        return lambda: RANDOM.choice(values)

    return Product(
        name=any_text()[:100],
        subtitle=any_text()[:100],
        stock=maybe(chosen(0, 1, -1, 127, 128, -(2**31), 2**31 - 1)),
        price=Decimal(RANDOM.randrange(-(10**6), 10**6)) / 100,
        weight=maybe(chosen(0.0, -0.0, 1.5, -3e38, float("inf"), 5e-324)),
        sku=uuid.UUID(int=RANDOM.getrandbits(128)),
        status=RANDOM.choice(("", "on sale", "so")),
        grade=RANDOM.choice((0, 1, 2)),
        active=maybe(chosen(True, False)),
        created=maybe(any_instant),
        available_on=maybe(lambda: any_instant().date()),
        opens=maybe(lambda: any_instant().time()),
        warranty=maybe(
            lambda: datetime.timedelta(
                days=RANDOM.randrange(-900, 900), microseconds=RANDOM.randrange(-5, 5)
            )
        ),
        attributes=maybe(any_json),
        counts=maybe(chosen({}, {"b": 1, "a": -2})),
        size=maybe(chosen({}, {"width": 3, "measured": "2024-02-29T12:00:00Z"})),
        sizes=maybe(chosen({}, {"S": {"width": 1}, "L": {"height": 2}})),
        keywords=maybe(chosen([], ["one", "", "three"])),
        anything=maybe(chosen(0, "text", [1, None], {"k": "v"}, True)),
        picture=RANDOM.choice(("", "pictures/one.png")),
        payload=maybe(chosen(b"", b"\0\xff", bytes(200))),
        nickname=maybe(lambda: any_text()[:100]),
        rank=maybe(chosen(0, -5, 70_000)),
        supplier=maybe(lambda: RANDOM.choice(suppliers)),
    )


@pytest.fixture
def products() -> list[Product]:
    suppliers = [Supplier.objects.create(name=name) for name in ("", "Light & Co")]
    products = [any_product(suppliers) for _ in range(120)]
    for product in products:
        product.save()
        if RANDOM.random() < 0.5:
            Manual.objects.create(product=product, title=any_text()[:100])
    return products


@pytest.mark.parametrize("message_class", [rows_pb2.ProductRow, rows_pb2.ProductShapesRow])
def test_random_rows_of_every_field_are_what_serialize_model_makes(
    products: list[Product], message_class: Any, settings: Any
) -> None:
    settings.MEDIA_URL = "/media/"
    queryset = Product.objects.select_related("supplier", "manual").order_by("pk")

    def refusal(make: Callable[[], Any]) -> str | None:
        try:
            make()
        except SerializationError as error:
            return str(error)
        return None

    refused = {it.pk: refusal(lambda it=it: serialize_model(message_class, it)) for it in queryset}
    for pk, reason in refused.items():
        rows = serialize_queryset(message_class, queryset.filter(pk=pk))
        assert refusal(lambda rows=rows: list(rows)) == reason
    good = [pk for pk, reason in refused.items() if reason is None]
    assert len(good) > 20
    assert_same(message_class, queryset.filter(pk__in=good))


NUMBERS = [
    0,
    1,
    -1,
    127,
    128,
    300,
    -300,
    2**31 - 1,
    -(2**31),
    2**32 - 1,
    2**53,
    2**63 - 1,
    -(2**63),
]


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("field", [it.name for it in rows_pb2.Numbers.DESCRIPTOR.fields])
def test_numbers_are_encoded_or_refused_as_the_message_does(number: int, field: str) -> None:
    Tag.objects.create(name="one")
    names = [it.name for it in rows_pb2.Numbers.DESCRIPTOR.fields]
    values = {
        name: Value(number if name == field else 0, output_field=BigIntegerField())
        for name in names
    }
    queryset = Tag.objects.annotate(**values)

    def outcome(make: Callable[[], Any]) -> Any:
        try:
            return make()
        except SerializationError as error:
            return str(error)

    from_instance = outcome(
        lambda: serialize_model(rows_pb2.Numbers, queryset.get()).SerializeToString()
    )
    from_row = outcome(lambda: bytes(*serialize_queryset(rows_pb2.Numbers, queryset)))
    assert from_row == from_instance


# Lists and streams


def test_a_list_is_filled_beside_its_other_fields(cities: list[City]) -> None:
    answer = serialize_queryset(
        rows_pb2.CityList,
        City.objects.order_by("pk")[:100],
        field="cities",
        next_page_token="more",  # noqa: S106
        total=250,
    )
    assert (
        answer.message()
        == rows_pb2.CityList(
            next_page_token="more",  # noqa: S106
            total=250,
            cities=[serialize_model(pb.City, city) for city in cities[:100]],
        )
    )


def test_a_list_of_nothing_is_empty() -> None:
    empty = serialize_queryset(rows_pb2.CityList, City.objects.none(), field="cities")
    assert bytes(empty) == b""
    assert streamed(pb.City, City.objects.none()) == []


def test_a_serialized_message_behaves_as_bytes_and_as_a_message(cities: list[City]) -> None:
    item = next(serialize_queryset(pb.City, City.objects.order_by("pk")[1:]))
    assert isinstance(item, SerializedMessage)
    assert pb.City.FromString(bytes(item)) == item.message()
    assert item.SerializeToString() == bytes(item)
    assert len(item) == len(bytes(item))
    assert repr(item) == f"<SerializedMessage City, {len(item)} bytes>"


def test_a_serialized_message_takes_no_attribute_in_silence(cities: list[City]) -> None:
    """It would not reach the client."""
    message = serialize_queryset(rows_pb2.CityList, City.objects.all(), field="cities")
    with pytest.raises(AttributeError, match="'next' can't be set any more: give serialize_qu"):
        message.next = "more"  # type: ignore[union-attr]
    with pytest.raises(AttributeError, match="can't be set any more"):
        del message.next  # type: ignore[union-attr]


def test_a_manager_will_do(cities: list[City]) -> None:
    assert len(streamed(pb.City, City.objects)) == 250


def test_a_queryset_costs_one_query_for_its_columns_only(products: list[Product]) -> None:
    with CaptureQueriesContext(connection) as queries:
        streamed(rows_pb2.ReviewRow, Review.objects.all())
    (query,) = queries
    assert "JOIN" in query["sql"]
    assert "keywords" not in query["sql"]


def test_a_stream_runs_its_query_when_it_is_asked_for(cities: list[City]) -> None:
    with CaptureQueriesContext(connection) as queries:
        stream = serialize_queryset(pb.City, City.objects.all())
        assert len(queries) == 0
        next(stream)
        assert len(queries) == 1


def test_closing_a_stream_ends_it_and_the_query(cities: list[City]) -> None:
    stream = serialize_queryset(pb.City, City.objects.all(), chunk_size=1)
    next(stream)
    stream.close()
    assert list(stream) == []
    stream.close()


# What the queryset says


def test_annotations_are_columns() -> None:
    product = Product.objects.create(name="Lamp")
    Review.objects.create(product=product, stars=1)
    Review.objects.create(product=product, stars=2)
    Product.objects.create(name="Bulb")
    queryset = Product.objects.annotate(review_count=Count("review")).order_by("pk")
    assert_same(pb.Annotated, queryset)
    assert [it.review_count for it in streamed(pb.Annotated, queryset)] == [2, 0]


def test_two_querysets_with_different_annotations_have_different_plans() -> None:
    tag = Tag.objects.create(name="red")
    labelled = Tag.objects.annotate(label=Upper("name"))
    assert one(rows_pb2.Labelled, labelled).label == "RED"
    with pytest.raises(SerializationError, match=r"catalog\.Labelled\.label .* Tag"):
        streamed(rows_pb2.Labelled, Tag.objects.all())
    assert one(rows_pb2.Labelled, labelled).id == tag.id


def test_an_annotation_that_is_not_asked_for_still_groups() -> None:
    product = Product.objects.create(name="Lamp")
    Review.objects.create(product=product, stars=1)
    Review.objects.create(product=product, stars=2)
    queryset = Product.objects.annotate(count=Count("review"))
    assert_same(rows_pb2.ProductSummary, queryset)
    assert len(streamed(rows_pb2.ProductSummary, queryset)) == 1


def test_grouped_and_distinct_rows_have_their_booleans(cities: list[City]) -> None:
    assert_same(pb.City, City.objects.annotate(count=Count("pk")).order_by("pk"))
    assert_same(pb.City, City.objects.distinct().order_by("pk"))


def test_distinct_rows_are_as_many_as_distinct_instances() -> None:
    for _ in range(2):
        product = Product.objects.create(name="Lamp")
        product.tags.add(Tag.objects.create(name="red"), Tag.objects.create(name="warm"))
    queryset = Product.objects.filter(tags__name__in=["red", "warm"]).distinct()
    assert len(streamed(rows_pb2.ProductSummary, queryset)) == len(queryset) == 2
    by_tag = queryset.annotate(tag=F("tags__name"))
    assert len(streamed(rows_pb2.ProductSummary, by_tag)) == len(by_tag) == 4


def test_a_union_is_refused(cities: list[City]) -> None:
    queryset = City.objects.all()
    with pytest.raises(SerializationError, match=r"catalog\.City .* rows of a union"):
        serialize_queryset(pb.City, queryset.union(queryset))


def test_a_slice_in_an_order_stays_one(cities: list[City]) -> None:
    assert_same(pb.City, City.objects.filter(capital=True).order_by("-population")[3:20])
    assert_same(pb.City, City.objects.order_by("capital", "-pk").reverse()[:7])


def test_deferred_and_prefetched_fields_are_no_matter(cities: list[City]) -> None:
    assert_same(pb.City, City.objects.defer("name").order_by("-name", "pk"))
    Supplier.objects.create(name="Light & Co")
    assert one(pb.SupplierSummary, Supplier.objects.prefetch_related("products")).pk


# Relations


def test_related_objects_are_joined_as_deep_as_the_message_goes() -> None:
    supplied = Product.objects.create(name="Lamp", supplier=Supplier.objects.create(name="Co"))
    Review.objects.create(product=supplied, stars=5)
    Review.objects.create(product=Product.objects.create(name="Bulb"), stars=0)
    queryset = Review.objects.select_related("product__supplier").order_by("pk")
    assert_same(rows_pb2.ReviewRow, queryset)
    first, second = streamed(rows_pb2.ReviewRow, queryset)
    assert first.product.supplier.name == "Co"
    assert second.product.name == "Bulb"
    assert not second.product.HasField("supplier")


def test_a_generic_foreign_key_in_a_number_is_its_key() -> None:
    supplier = Supplier.objects.create(name="Co")
    Note.objects.create(content_object=supplier, text="fragile")
    assert_same(rows_pb2.NoteRow, Note.objects.all())


def test_oneofs_take_the_member_that_has_a_value() -> None:
    supplier = Supplier.objects.create(name="Co")
    Payment.objects.create(card="4711")
    Payment.objects.create(voucher="V", card="")
    Payment.objects.create(supplier=supplier)
    Payment.objects.create()
    assert_same(pb.Payment, Payment.objects.select_related("supplier").order_by("pk"))


def test_a_oneof_with_two_values_is_named() -> None:
    Payment.objects.create(card="4711", voucher="V")
    with pytest.raises(SerializationError, match=r"catalog\.Payment\.means .* card and voucher"):
        streamed(pb.Payment, Payment.objects.all())


# What is refused


class LoudCity(BaseModelSerializer):
    model_class = City

    def get_name(self, instance: City) -> str:
        return instance.name.upper()


class Irrelevant(BaseModelSerializer):
    model_class = City

    def get_mayor(self, instance: City) -> str:
        return "?"


class OwnWay(BaseModelSerializer):
    model_class = City

    def _get_field_value(self, grpc_field: Any, name: str, instance: Any) -> Any:
        return None


def test_serializers_that_need_instances_are_refused() -> None:
    with pytest.raises(SerializationError, match=r"catalog\.City\.name .* City: get_name"):
        serialize_queryset(pb.City, City.objects.all(), [LoudCity()])
    with pytest.raises(SerializationError, match="OwnWay"):
        serialize_queryset(pb.City, City.objects.all(), [OwnWay])
    assert list(serialize_queryset(pb.City, City.objects.all(), [Irrelevant(), LoudCity()])) == []


@pytest.mark.parametrize(
    ("message_class", "model", "sentence"),
    [
        (
            pb.Unknown,
            City,
            r"catalog\.Unknown\.flavour .* City: it has no field, and the queryset",
        ),
        (rows_pb2.Labelled, Product, r"catalog\.Labelled\.label .* Product: Product\.label is no"),
        (pb.Product, Product, r"catalog\.Product\.tags .* Product: a to-many relation"),
        (pb.Supplier, Supplier, r"catalog\.Supplier\.products .* Supplier: a to-many relation"),
        (pb.Note, Note, r"catalog\.Note\.content_object .* Note: .* generic foreign key"),
        (rows_pb2.ManualKey, Product, r"catalog\.ManualKey\.manual .* Product: the key"),
        (rows_pb2.ManualLoop, Manual, r"catalog\.ManualLoop holds itself by way of Manual"),
    ],
)
def test_what_rows_do_not_hold_is_refused_with_a_sentence(
    message_class: Any, model: Any, sentence: str
) -> None:
    with pytest.raises(SerializationError, match=sentence):
        serialize_queryset(message_class, model.objects.all())


class SignedFile(FieldFile):
    @property
    def url(self) -> str:
        return f"/{self.instance.pk}/{self.name}"


def test_files_with_urls_of_their_own_making_are_refused(monkeypatch: Any) -> None:
    monkeypatch.setattr(Product._meta.get_field("picture"), "attr_class", SignedFile)
    with pytest.raises(SerializationError, match=r"PictureOnly\.picture .* Product: picture"):
        serialize_queryset(rows_pb2.PictureOnly, Product.objects.all())


@pytest.mark.parametrize(
    "make",
    [
        lambda: City.objects.values("name"),
        lambda: City.objects.values_list("name"),
        lambda: [City()],
        lambda: City.objects.raw("select 1"),
    ],
)
def test_only_querysets_of_instances_are_taken(make: Callable[[], Any]) -> None:
    with pytest.raises(SerializationError, match="a queryset of model instances"):
        serialize_queryset(pb.City, make())


def test_a_list_needs_a_repeated_field_of_messages() -> None:
    queryset = City.objects.all()
    with pytest.raises(SerializationError, match="no field 'towns'"):
        serialize_queryset(rows_pb2.CityList, queryset, field="towns")
    for message_class, field in (
        (rows_pb2.CityList, "total"),
        (rows_pb2.ProductRow, "keywords"),
        (rows_pb2.ProductRow, "counts"),
        (rows_pb2.ProductRow, "supplier"),
    ):
        with pytest.raises(SerializationError, match=f"{field} is no repeated field"):
            serialize_queryset(message_class, queryset, field=field)
    with pytest.raises(TypeError, match="there is no list"):
        serialize_queryset(pb.City, queryset, total=1)
    with pytest.raises(ValueError, match="chunk_size"):
        serialize_queryset(pb.City, queryset, chunk_size=0)
    with pytest.raises(TypeError, match="cities is filled"):
        serialize_queryset(rows_pb2.CityList, queryset, field="cities", cities=[])


def test_a_value_that_does_not_fit_is_named_but_not_shown() -> None:
    Product.objects.create(name="Lamp", status="lost")
    with pytest.raises(SerializationError, match=r"catalog\.ProductRow\.status .* Product") as e:
        streamed(rows_pb2.ProductRow, Product.objects.all())
    assert "'lost'" not in str(e.value)


# Through the engine


TagFromBytes = pb.Tag.FromString


def list_tags(request: Any, context: Any) -> Any:
    return serialize_queryset(
        rows_pb2.TagList, Tag.objects.filter(pk__gte=request.id).order_by("pk"), field="tags"
    )


def stream_tags(request: Any, context: Any) -> Any:
    return serialize_queryset(pb.Tag, Tag.objects.order_by("pk"))


def mixed_tags(request: Any, context: Any) -> Iterator[Any]:
    yield pb.Tag(name="first")
    yield from serialize_queryset(pb.Tag, Tag.objects.order_by("pk"))


def hook(server: Any) -> None:
    """Register methods that answer from querysets."""
    handlers = {
        "List": grpc.unary_unary_rpc_method_handler(
            list_tags, TagFromBytes, rows_pb2.TagList.SerializeToString
        ),
        "Stream": grpc.unary_stream_rpc_method_handler(
            stream_tags, TagFromBytes, pb.Tag.SerializeToString
        ),
        "Mixed": grpc.unary_stream_rpc_method_handler(
            mixed_tags, TagFromBytes, pb.Tag.SerializeToString
        ),
    }
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("catalog.Tags", handlers),)
    )


def call_stream(channel: grpc.Channel, method: str) -> list[Any]:
    call = channel.unary_stream(f"/catalog.Tags/{method}", pb.Tag.SerializeToString, TagFromBytes)
    return list(call(pb.Tag(), timeout=20))


@pytest.fixture
def tags() -> list[Any]:
    made = Tag.objects.bulk_create(Tag(name=f"tag {number}") for number in range(300))
    return [serialize_model(pb.Tag, tag) for tag in made]


@pytest.mark.grpc_server(servicers=[hook])
def test_the_engine_sends_a_list_as_it_is(tags: list[Any], grpc_server: Any) -> None:
    call = grpc_server.channel.unary_unary(
        "/catalog.Tags/List", pb.Tag.SerializeToString, rows_pb2.TagList.FromString
    )
    assert call(pb.Tag(), timeout=20) == rows_pb2.TagList(tags=tags)
    assert call(pb.Tag(id=2**40), timeout=20) == rows_pb2.TagList()


@pytest.mark.grpc_server(servicers=[hook])
def test_the_engine_sends_a_stream_as_it_is(tags: list[Any], grpc_server: Any) -> None:
    assert call_stream(grpc_server.channel, "Stream") == tags


@pytest.mark.grpc_server(servicers=[hook])
def test_a_generator_may_yield_messages_and_rows(tags: list[Any], grpc_server: Any) -> None:
    assert call_stream(grpc_server.channel, "Mixed") == [pb.Tag(name="first"), *tags]


@pytest.mark.grpc_server(servicers=[hook])
def test_a_client_that_leaves_ends_the_stream(tags: list[Any], grpc_server: Any) -> None:
    call = grpc_server.channel.unary_stream(
        "/catalog.Tags/Stream", pb.Tag.SerializeToString, TagFromBytes
    )(pb.Tag(), timeout=20)
    assert next(call) == tags[0]
    call.cancel()
    # The one worker is free again, and the query that it ran is closed.
    assert call_stream(grpc_server.channel, "Stream") == tags


@pytest.mark.parametrize("given", [None, pb.City(), City, "catalog.City"])
def test_what_is_no_message_class_is_refused(db, given):
    for serialize in (serialize_queryset, serialize_model):
        with pytest.raises(TypeError, match="a generated message class comes first, not "):
            serialize(given, City.objects.all())
