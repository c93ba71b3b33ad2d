"""Model instances to messages."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from catalog import catalog_pb2 as pb
from catalog.models import City, Manual, Note, Payment, Product, Review, Supplier, Tag
from django.core.files.storage import Storage
from django.db.models import Count
from django.utils.functional import SimpleLazyObject
from django.utils.translation import gettext_lazy
from google.protobuf.descriptor_pb2 import DescriptorProto
from google.protobuf.field_mask_pb2 import FieldMask

from django_grpc.serializers import (
    BaseModelSerializer,
    SerializationError,
    deserialize_into,
    message_to_python,
    serialize_model,
    serialize_queryset,
)

NOON = datetime.datetime(2024, 2, 29, 12, 0, 0, 250_000, tzinfo=datetime.UTC)


def amsterdam() -> City:
    return City(
        id=7,
        name="Amsterdam",
        country="NL",
        population=741_636,
        latitude=52.37,
        longitude=4.89,
        timezone="Europe/Amsterdam",
        capital=True,
    )


@pytest.fixture
def product(db: None) -> Product:
    product = Product.objects.create(
        name="Lamp", supplier=Supplier.objects.create(name="Light & Co")
    )
    product.tags.add(Tag.objects.create(name="red"), Tag.objects.create(name="warm"))
    Review.objects.create(product=product, stars=5)
    Manual.objects.create(product=product, title="How to")
    Note.objects.create(content_object=product, text="fragile")
    return product


class TestScalars:
    def test_every_plain_field_is_copied(self) -> None:
        assert serialize_model(pb.City, amsterdam(), []) == pb.City(
            id=7,
            name="Amsterdam",
            country="NL",
            population=741_636,
            latitude=52.37,
            longitude=4.89,
            timezone="Europe/Amsterdam",
            capital=True,
        )

    def test_a_second_call_follows_the_same_plan_for_another_instance(self) -> None:
        serialize_model(pb.City, amsterdam(), [])
        other = amsterdam()
        other.name = "Utrecht"
        assert serialize_model(pb.City, other, []).name == "Utrecht"

    def test_null_is_unset_and_blank_is_present(self) -> None:
        message = serialize_model(pb.Product, Product(stock=None, subtitle=""), [])
        assert not message.HasField("stock")
        assert message.HasField("subtitle")
        assert not message.HasField("nickname")
        assert message.weight == 0

    def test_zero_in_an_optional_or_wrapped_field_is_present(self) -> None:
        message = serialize_model(pb.Product, Product(stock=0, rank=0, nickname=""), [])
        assert message.HasField("stock")
        assert message.HasField("rank")
        assert message.HasField("nickname")

    def test_no_instance_makes_an_empty_message(self) -> None:
        assert serialize_model(pb.City, None, []) == pb.City()

    def test_a_lazy_object_is_its_instance(self) -> None:
        assert serialize_model(pb.City, SimpleLazyObject(amsterdam), []).id == 7

    def test_values_that_are_not_yet_what_the_field_makes_of_them_are_converted(self) -> None:
        city = amsterdam()
        city.name = gettext_lazy("Capital")
        city.latitude = Decimal("1.5")
        city.population = 2.0
        message = serialize_model(pb.City, city, [])
        assert (message.name, message.latitude, message.population) == ("Capital", 1.5, 2)

    @pytest.mark.parametrize(
        ("attribute", "value"),
        [("population", "many"), ("population", 2**40), ("latitude", "north"), ("name", b"\xff")],
    )
    def test_a_value_that_does_not_fit_is_named_but_not_shown(
        self, attribute: str, value: Any
    ) -> None:
        city = amsterdam()
        setattr(city, attribute, value)
        with pytest.raises(SerializationError, match=rf"catalog\.City\.{attribute} .*City\.") as e:
            serialize_model(pb.City, city, [])
        assert "many" not in str(e.value)

    def test_decimal_uuid_and_bytes(self) -> None:
        sku = uuid.uuid4()
        product = Product(id=3, sku=sku, price=Decimal("1E+2"), payload=memoryview(b"\0\1"))
        message = serialize_model(pb.Product, product, [_NoRelations(Product)])
        assert (message.sku, message.price, message.payload) == (str(sku), "100", b"\0\1")
        shapes = serialize_model(pb.ProductShapes, product, [_NoRelations(Product)])
        assert (shapes.sku, shapes.price, shapes.id) == (sku.bytes, 100.0, "3")


class _NoRelations(BaseModelSerializer):
    """For products that are not saved."""

    def get_tags(self, instance: Product) -> None:
        return None

    get_review_set = get_notes = get_manual = get_tags


class TestTime:
    def test_datetime_date_time_and_duration(self) -> None:
        product = Product(
            id=1,
            created=NOON,
            available_on=datetime.date(1969, 12, 31),
            opens=datetime.time(8, 30, 0, 1),
            warranty=datetime.timedelta(days=365, microseconds=7),
        )
        message = serialize_model(pb.Product, product, [_NoRelations(Product)])
        assert message.created.ToDatetime(datetime.UTC) == NOON
        assert (message.available_on.seconds, message.available_on.nanos) == (-86_400, 0)
        assert (message.opens.seconds, message.opens.nanos) == (30_600, 1000)
        assert message.warranty.ToTimedelta() == product.warranty

    def test_a_timestamp_before_the_epoch_counts_its_nanos_forward(self) -> None:
        moment = datetime.datetime(1969, 12, 31, 23, 59, 59, 500_000, tzinfo=datetime.UTC)
        message = serialize_model(pb.Product, Product(created=moment), [_NoRelations(Product)])
        assert (message.created.seconds, message.created.nanos) == (-1, 500_000_000)

    def test_a_negative_duration_has_one_sign(self) -> None:
        product = Product(warranty=datetime.timedelta(seconds=-1, microseconds=-5))
        message = serialize_model(pb.Product, product, [_NoRelations(Product)])
        assert (message.warranty.seconds, message.warranty.nanos) == (-1, -5000)

    def test_a_naive_datetime_is_in_the_default_time_zone(self, settings: Any) -> None:
        settings.TIME_ZONE = "Asia/Tokyo"
        product = Product(created=datetime.datetime(2024, 1, 1, 9))
        message = serialize_model(pb.Product, product, [_NoRelations(Product)])
        assert message.created.seconds == 1_704_067_200

    def test_as_text_they_are_iso_8601(self) -> None:
        product = Product(
            created=NOON,
            available_on=datetime.date(2024, 2, 29),
            warranty=datetime.timedelta(minutes=90),
        )
        message = serialize_model(pb.ProductShapes, product, [_NoRelations(Product)])
        assert message.created == "2024-02-29T12:00:00.250000+00:00"
        assert message.available_on == "2024-02-29"
        assert message.warranty == "P0DT01H30M00S"


class TestEnums:
    @pytest.mark.parametrize(
        ("status", "number"),
        [
            ("", pb.STATUS_UNSPECIFIED),
            ("on sale", pb.STATUS_ON_SALE),
            ("so", pb.STATUS_SOLD_OUT),  # By its label.
            (Product.Status.SOLD_OUT, pb.STATUS_SOLD_OUT),
        ],
    )
    def test_a_choice_is_the_enum_value_of_its_name_or_label(
        self, status: str, number: int
    ) -> None:
        product = Product(status=status)
        message = serialize_model(pb.Product, product, [_NoRelations(Product)])
        assert message.status == number

    def test_a_choice_that_the_enum_does_not_know_is_an_error(self) -> None:
        with pytest.raises(SerializationError, match=r"catalog\.Product\.status .*catalog\.Status"):
            serialize_model(pb.Product, Product(status="lost"), [_NoRelations(Product)])

    def test_an_integer_choice_is_a_number_or_an_enum(self) -> None:
        product = Product(grade=Product.Grade.FINE)
        assert serialize_model(pb.Product, product, [_NoRelations(Product)]).grade == 2
        shapes = serialize_model(pb.ProductShapes, product, [_NoRelations(Product)])
        assert shapes.grade == pb.STATUS_SOLD_OUT


class TestJson:
    def test_a_dict_is_a_struct_a_map_or_text(self) -> None:
        attributes = {"a": [1, 2.5, None, {"b": True}], "empty": {}, "none": []}
        product = Product(attributes=attributes, counts={"x": 1}, keywords=["a", "b"], anything=[0])
        message = serialize_model(pb.Product, product, [_NoRelations(Product)])
        assert message.attributes["a"][3]["b"] is True
        assert message.attributes["a"][1] == 2.5
        assert message.attributes.fields["empty"].WhichOneof("kind") == "struct_value"
        assert message.attributes.fields["none"].WhichOneof("kind") == "list_value"
        assert dict(message.counts) == {"x": 1}
        assert list(message.keywords) == ["a", "b"]
        assert message.anything.list_value.values[0].number_value == 0
        shapes = serialize_model(pb.ProductShapes, product, [_NoRelations(Product)])
        assert shapes.attributes.startswith('{"a": [1, 2.5, null, {"b": true}]')
        assert [value.string_value for value in shapes.keywords.values] == ["a", "b"]

    def test_a_dict_is_a_message_by_protobufs_json(self) -> None:
        size = {"width": 3, "measured": "2024-01-01T00:00:00Z"}
        product = Product(size=size, sizes={"small": size})
        message = serialize_model(pb.Product, product, [_NoRelations(Product)])
        assert (message.size.width, message.size.measured.seconds) == (3, 1_704_067_200)
        shapes = serialize_model(pb.ProductShapes, product, [_NoRelations(Product)])
        assert shapes.sizes["small"].width == 3

    @pytest.mark.parametrize(
        ("attribute", "value"),
        [
            ("size", {"depth": 1}),
            ("size", 7),
            ("attributes", [1]),
            ("counts", {"x": "y"}),
            ("keywords", "text"),
        ],
    )
    def test_json_of_another_shape_is_an_error(self, attribute: str, value: Any) -> None:
        with pytest.raises(SerializationError, match=rf"catalog\.Product\.{attribute} cannot"):
            serialize_model(pb.Product, Product(**{attribute: value}), [_NoRelations(Product)])


class _NoUrls(Storage):
    def url(self, name: str | None) -> str:
        raise NotImplementedError


class TestFiles:
    def test_a_file_is_its_url(self, settings: Any) -> None:
        settings.MEDIA_URL = "/media/"
        product = Product(picture="pictures/lamp.png")
        message = serialize_model(pb.Product, product, [_NoRelations(Product)])
        assert message.picture == "/media/pictures/lamp.png"

    def test_a_file_is_its_name_where_the_storage_has_no_urls(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        product = Product(picture="pictures/lamp.png")
        monkeypatch.setattr(product.picture, "storage", _NoUrls())
        message = serialize_model(pb.Product, product, [_NoRelations(Product)])
        assert message.picture == "pictures/lamp.png"

    def test_no_file_is_blank(self) -> None:
        assert serialize_model(pb.Product, Product(), [_NoRelations(Product)]).picture == ""


class TestRelations:
    def test_foreign_keys_one_to_one_and_to_many(self, product: Product) -> None:
        message = serialize_model(pb.Product, product, [])
        assert message.supplier == pb.SupplierSummary(pk=product.supplier_id, name="Light & Co")
        assert message.supplier_id == product.supplier_id
        assert [tag.name for tag in message.tags] == ["red", "warm"]
        assert message.manual.title == "How to"
        assert message.manual.product.name == "Lamp"
        assert [review.stars for review in message.review_set] == [5]
        assert [note.text for note in message.notes] == ["fragile"]

    def test_relations_as_keys(self, product: Product) -> None:
        message = serialize_model(pb.ProductShapes, product, [])
        assert message.supplier == product.supplier_id
        assert list(message.tags) == [tag.pk for tag in product.tags.all()]

    def test_generic_foreign_keys(self, product: Product) -> None:
        note = Note.objects.get()
        assert serialize_model(pb.Note, note, []).content_object.name == "Lamp"
        assert serialize_model(pb.NoteReference, note, []).content_object == product.pk

    def test_a_relation_to_nothing_is_unset(self, db: None) -> None:
        message = serialize_model(pb.Product, Product.objects.create(name="x"), [])
        assert not message.HasField("supplier")
        assert not message.HasField("manual")
        assert message.supplier_id == 0
        assert not message.tags

    def test_of_an_object_that_is_not_saved_to_many_relations_are_empty(self) -> None:
        assert not serialize_model(pb.Product, Product(name="new"), []).tags

    def test_what_is_loaded_is_not_queried(
        self, product: Product, django_assert_num_queries: Any
    ) -> None:
        loaded = (
            Product.objects.select_related("supplier", "manual")
            .prefetch_related("tags", "review_set", "notes__content_object")
            .get()
        )
        with django_assert_num_queries(0):
            message = serialize_model(pb.Product, loaded, [])
        assert len(message.tags) == 2

    def test_a_key_costs_no_query(self, product: Product, django_assert_num_queries: Any) -> None:
        loaded = Product.objects.prefetch_related("tags").get()
        note = Note.objects.get()
        with django_assert_num_queries(0):
            assert serialize_model(pb.ProductShapes, loaded, []).supplier
            assert serialize_model(pb.NoteReference, note, []).content_object

    def test_a_deferred_field_is_loaded(self, db: None, django_assert_num_queries: Any) -> None:
        amsterdam().save()
        deferred = City.objects.defer("name").get()
        with django_assert_num_queries(1):
            assert serialize_model(pb.City, deferred, []).name == "Amsterdam"

    def test_to_many_does_not_fill_one(self, product: Product) -> None:
        with pytest.raises(SerializationError, match=r"catalog\.SingularTags\.tags .*repeated"):
            serialize_model(pb.SingularTags, product, [])


class TestOtherAttributes:
    def test_a_property(self) -> None:
        product = Product(name="Lamp", created=NOON)
        assert serialize_model(pb.Product, product, [_NoRelations(Product)]).label == "Lamp!"
        shapes = serialize_model(pb.ProductShapes, product, [_NoRelations(Product)])
        assert shapes.checked[0].ToDatetime(datetime.UTC) == NOON

    def test_an_annotation(self, product: Product) -> None:
        annotated = Product.objects.annotate(review_count=Count("review")).get()
        assert serialize_model(pb.Annotated, annotated, []).review_count == 1

    def test_an_instance_without_the_annotation_is_an_error(self, product: Product) -> None:
        serialize_model(pb.Annotated, Product.objects.annotate(review_count=Count("review")).get())
        with pytest.raises(SerializationError, match=r"catalog\.Annotated\.review_count has no"):
            serialize_model(pb.Annotated, product, [])

    def test_a_field_that_the_model_lacks_names_message_field_and_model(self) -> None:
        with pytest.raises(SerializationError, match=r"catalog\.Unknown\.flavour .* City"):
            serialize_model(pb.Unknown, amsterdam(), [])

    def test_a_method_is_not_called(self) -> None:
        city = amsterdam()
        city.flavour = lambda: "sweet"  # type: ignore[attr-defined]
        with pytest.raises(SerializationError, match="method"):
            serialize_model(pb.Unknown, city, [])


class TestOneof:
    @pytest.mark.parametrize(
        ("values", "chosen"),
        [
            ({"card": "4111"}, "card"),
            ({"card": "", "voucher": "V"}, "voucher"),
            ({"voucher": "", "supplier": Supplier(id=2, name="S")}, "supplier"),
            ({}, None),
        ],
    )
    def test_the_member_with_a_value_is_set(
        self, values: dict[str, Any], chosen: str | None
    ) -> None:
        message = serialize_model(pb.Payment, Payment(id=1, **values), [])
        assert message.WhichOneof("means") == chosen

    def test_two_members_with_a_value_are_an_error(self) -> None:
        payment = Payment(card="4111", voucher="V")
        with pytest.raises(SerializationError, match=r"catalog\.Payment\.means .*card and voucher"):
            serialize_model(pb.Payment, payment, [])


class TagSerializer(BaseModelSerializer):
    model_class = Tag

    def __init__(self, model_class: Any = None, mark: str = "") -> None:
        super().__init__(model_class)
        self.mark = mark

    def get_name(self, instance: Tag) -> str:
        return instance.name.upper() + self.mark


class TestSerializers:
    def test_a_get_method_gives_the_value(self) -> None:
        message = serialize_model(pb.Tag, Tag(id=1, name="red"), [TagSerializer(Tag)])
        assert message == pb.Tag(id=1, name="RED")

    def test_the_serializer_of_the_call_is_the_one_asked(self) -> None:
        for mark in ("!", "?"):
            message = serialize_model(pb.Tag, Tag(name="red"), [TagSerializer(mark=mark)])
            assert message.name == "RED" + mark

    def test_a_class_does_for_an_instance(self) -> None:
        assert serialize_model(pb.Tag, Tag(name="red"), [TagSerializer]).name == "RED"

    def test_any_iterable_of_serializers_does(self, product: Product) -> None:
        message = serialize_model(pb.Product, product, iter([TagSerializer()]))
        assert [tag.name for tag in message.tags] == ["RED", "WARM"]

    def test_a_get_method_may_return_what_a_model_holds(self) -> None:
        class ProductSerializer(_NoRelations):
            def get_created(self, instance: Product) -> datetime.datetime:
                return NOON

            def get_supplier(self, instance: Product) -> Supplier:
                return Supplier(id=9, name="S")

            def get_tags(self, instance: Product) -> Any:
                return [Tag(name="model"), pb.Tag(name="message"), {"name": "dict"}]

            def get_attributes(self, instance: Product) -> dict[str, int]:
                return {"a": 1}

        message = serialize_model(pb.Product, Product(), [ProductSerializer(Product)])
        assert message.created.ToDatetime(datetime.UTC) == NOON
        assert message.supplier.pk == 9
        assert [tag.name for tag in message.tags] == ["model", "message", "dict"]
        assert message.attributes["a"] == 1

    def test_the_first_of_two_counts_and_subclasses_match(self) -> None:
        class Special(Tag):
            class Meta:
                proxy = True
                app_label = "catalog"

        serializers = [TagSerializer(mark="1"), TagSerializer(mark="2")]
        assert serialize_model(pb.Tag, Special(name="x"), serializers).name == "X1"

    def test_an_error_in_a_get_method_is_not_disguised(self) -> None:
        class Failing(BaseModelSerializer):
            calls = 0

            def get_name(self, instance: Tag) -> str:
                self.calls += 1
                raise TypeError("mine")

        serializer = Failing(Tag)
        with pytest.raises(TypeError, match=r"^mine$"):
            serialize_model(pb.Tag, Tag(), [serializer])
        assert serializer.calls == 1

    def test_the_serializers_of_the_call_are_at_hand(self) -> None:
        class Nesting(BaseModelSerializer):
            def get_tags(self, instance: Product) -> list[Any]:
                return [serialize_model(pb.Tag, Tag(name="t"), self.serializers)]

        serializers = [Nesting(Product), TagSerializer()]
        assert serialize_model(pb.Product, Product(), serializers).tags[0].name == "T"

    def test_a_method_of_one_model_does_not_serve_its_related_models(
        self, product: Product
    ) -> None:
        class SupplierSerializer(BaseModelSerializer):
            def get_name(self, instance: Supplier) -> str:
                return "hidden"

        supplier = Supplier.objects.prefetch_related("products").get()
        message = serialize_model(pb.Supplier, supplier, [SupplierSerializer(Supplier)])
        assert message.name == "hidden"
        assert [it.name for it in message.products] == ["Lamp"]

    def test_overridden_to_dict_is_asked(self) -> None:
        class Custom(BaseModelSerializer):
            def _to_dict(self, grpc_fields: Any, instance: Any) -> dict[str, Any]:
                values = super()._to_dict(grpc_fields, instance)
                values["name"] += " and more"
                return values

        message = serialize_model(pb.City, amsterdam(), [Custom(City)])
        assert (message.id, message.name) == (7, "Amsterdam and more")

    def test_overridden_get_field_value_is_asked_for_related_objects_too(
        self, product: Product
    ) -> None:
        class Custom(BaseModelSerializer):
            def _get_field_value(self, grpc_field: Any, name: str, instance: Any) -> Any:
                value = super()._get_field_value(grpc_field, name, instance)
                return value.upper() if name == "name" else value

        message = Custom.serialize_model(pb.Product, product, [])
        assert message.name == "LAMP"
        assert [tag.name for tag in message.tags] == ["RED", "WARM"]
        assert message.supplier.name == "LIGHT & CO"

    def test_overridden_find_for_model_is_asked(self) -> None:
        class Finding(BaseModelSerializer):
            @classmethod
            def find_for_model(cls, instance: Any, serializers: Any) -> BaseModelSerializer:
                return TagSerializer(mark=" found")

        assert Finding.serialize_model(pb.Tag, Tag(name="x"), []).name == "X found"

    def test_a_serializer_without_a_model_is_an_error(self) -> None:
        with pytest.raises(TypeError, match=r"^BaseModelSerializer has no model"):
            BaseModelSerializer()


def test_the_proto_has_the_presence_that_these_tests_are_about() -> None:
    proto = DescriptorProto()
    pb.Product.DESCRIPTOR.CopyToProto(proto)
    assert {field.name for field in proto.field if field.proto3_optional} == {"subtitle", "stock"}


class NamesNoClass(BaseModelSerializer):
    model_class = "catalog.City"


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda: serialize_model(pb.City, City), "an instance is needed, not the class City"),
        (
            lambda: serialize_model(pb.City, City(), ["S"]),
            "serializers must be BaseModelSerializers with a model_class, not an object of type "
            "str",
        ),
        (
            lambda: serialize_model(pb.City, City(), [City]),
            "serializers must be BaseModelSerializers with a model_class, not the class City",
        ),
        (
            lambda: serialize_model(pb.City, City(), BaseModelSerializer(City)),
            "serializers must be a list of them, not an object of type BaseModelSerializer",
        ),
        (
            lambda: BaseModelSerializer("catalog.City"),
            "serializers must be BaseModelSerializers with a model_class",
        ),
        (
            lambda: serialize_model(pb.City, City(), [NamesNoClass]),
            "with a model_class, not the class NamesNoClass",
        ),
        (
            lambda: serialize_queryset(pb.City, City.objects.all(), 5),
            "serializers must be a list of them, not an object of type int",
        ),
        (
            lambda: serialize_queryset(pb.City, City.objects.all(), ["S"]),
            "serializers must be BaseModelSerializers with a model_class, not an object of type "
            "str",
        ),
        (
            lambda: serialize_queryset(pb.City, City.objects.all(), chunk_size="5"),
            "chunk_size must be a whole number, not an object of type str",
        ),
        (
            lambda: deserialize_into(pb.City(), City()),
            "a model instance comes first, not an object of type City",
        ),
        (
            lambda: deserialize_into(City, pb.City()),
            "a model instance comes first, not the class City",
        ),
        (lambda: deserialize_into(City(), pb.City), "a message is needed, not the class City"),
        (lambda: deserialize_into(City(), {}), "a message is needed, not an object of type dict"),
        (
            lambda: deserialize_into(None, pb.City()),
            "a model instance comes first, not an object of type NoneType",
        ),
        (
            lambda: deserialize_into(City(), pb.City(), fields="name"),
            "fields must be a list of paths, not 'name'",
        ),
        (
            lambda: deserialize_into(City(), pb.City(), fields=FieldMask(paths=["name"])),
            "fields must be a list of paths, as update_mask.paths, not the message",
        ),
        (lambda: message_to_python(None), "a message is needed, not an object of type NoneType"),
        (lambda: message_to_python([]), "a message is needed, not an object of type list"),
        (lambda: message_to_python(pb.City), "a message is needed, not the class City"),
    ],
)
def test_arguments_of_another_kind_are_told_in_a_sentence(
    call: Callable[[], object], complaint: str
) -> None:
    with pytest.raises(TypeError) as caught:
        call()
    assert complaint in str(caught.value)
