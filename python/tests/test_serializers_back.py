"""Messages to plain Python, and onto model instances."""

from __future__ import annotations

import datetime
import uuid
from decimal import Decimal
from typing import Any

import pytest
from catalog import catalog_pb2 as pb
from catalog import rows_pb2
from catalog.models import City, Payment, Product, Supplier, Tag
from django.core.exceptions import ValidationError
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from google.protobuf.wrappers_pb2 import Int32Value, StringValue

from django_grpc.serializers import (
    BaseModelSerializer,
    SerializationError,
    deserialize_into,
    deserialize_message,
    message_to_python,
    serialize_model,
)


class NoTags(BaseModelSerializer):
    """Leaves out what needs a database."""

    def get_tags(self, instance: Any) -> None:
        return None

    get_manual = get_review_set = get_notes = get_tags


class TestMessageToPython:
    def test_only_what_the_message_has(self) -> None:
        message = pb.Product(id=1, stock=0, subtitle="")
        assert message_to_python(message) == {"id": 1, "stock": 0, "subtitle": ""}
        assert deserialize_message(pb.Product()) == {}

    def test_nested_repeated_and_maps_are_plain(self) -> None:
        message = pb.Product(
            supplier={"pk": 1, "name": "S"},
            tags=[{"name": "a"}],
            keywords=["x", "y"],
            counts={"n": 2},
            status=pb.STATUS_SOLD_OUT,
        )
        result = deserialize_message(message)
        assert result == {
            "supplier": {"pk": 1, "name": "S"},
            "tags": [{"name": "a"}],
            "keywords": ["x", "y"],
            "counts": {"n": 2},
            "status": 2,
        }
        assert type(result["keywords"]) is list
        assert type(result["counts"]) is dict

    def test_maps_of_messages_are_dicts_of_dicts(self) -> None:
        message = pb.ProductShapes()
        message.sizes["a"].width = 1
        assert message_to_python(message) == {"sizes": {"a": {"width": 1}}}

    def test_struct_and_value_are_their_json(self) -> None:
        message = pb.Product()
        message.attributes.update({"a": [1, 2.5, None, {"b": True, "c": "d"}]})
        message.anything.null_value = 0
        result = message_to_python(message)
        assert result == {
            "attributes": {"a": [1, 2.5, None, {"b": True, "c": "d"}]},
            "anything": None,
        }

    def test_times_and_wrappers_are_dicts_unless_asked(self) -> None:
        message = pb.Product(
            created=Timestamp(seconds=1, nanos=2000),
            warranty=Duration(seconds=-1, nanos=-5000),
            rank=Int32Value(value=0),
        )
        assert message_to_python(message) == {
            "created": {"seconds": 1, "nanos": 2000},
            "warranty": {"seconds": -1, "nanos": -5000},
            "rank": {"value": 0},
        }
        assert message_to_python(message, well_known=True) == {
            "created": datetime.datetime(1970, 1, 1, 0, 0, 1, 2, tzinfo=datetime.UTC),
            "warranty": datetime.timedelta(seconds=-1, microseconds=-5),
            "rank": 0,
        }


def full_product() -> Product:
    return Product(
        id=4,
        name="Lamp",
        subtitle="of brass",
        stock=0,
        price=Decimal("12.50"),
        weight=1.5,
        sku=uuid.UUID(int=7),
        status="so",
        grade=2,
        created=datetime.datetime(2024, 2, 29, 12, 0, 0, 5, tzinfo=datetime.UTC),
        available_on=datetime.date(2024, 3, 1),
        opens=datetime.time(8, 30, 15),
        warranty=datetime.timedelta(days=-1, microseconds=9),
        attributes={"a": [1, 2.5, None]},
        counts={"n": 1},
        size={"width": 3, "measured": "2024-01-01T00:00:00Z"},
        keywords=["a", "b"],
        anything=[1],
        payload=b"\0\1",
        nickname="",
        rank=0,
        supplier_id=6,
    )


_PRODUCT = {"tags", "manual", "review_set", "notes", "label", "picture", "supplier"}
_SHAPES = {"tags", "checked", "sizes", "active", "grade", "supplier"}


class TestDeserializeInto:
    @pytest.mark.parametrize(
        ("message_class", "exclude"), [(pb.Product, _PRODUCT), (pb.ProductShapes, _SHAPES)]
    )
    def test_what_was_serialized_comes_back(
        self, message_class: Any, exclude: set[str], db: None
    ) -> None:
        Supplier.objects.create(id=6, name="S")
        product = full_product()
        product.save(force_insert=True)
        message = serialize_model(message_class, product, [])
        copy = Product()
        changed = deserialize_into(copy, message, exclude=exclude)
        assert set(changed) >= {"id", "sku", "created", "available_on", "keywords"}
        for name in changed:
            attribute = Product._meta.get_field(name).attname  # type: ignore[union-attr]
            assert getattr(copy, attribute) == getattr(product, attribute), name

    def test_absent_fields_stay(self) -> None:
        city = City(name="Amsterdam", population=5)
        assert deserialize_into(city, pb.City(name="Utrecht")) == ["name"]
        assert (city.name, city.population) == ("Utrecht", 5)

    def test_a_present_zero_is_set(self) -> None:
        product = Product(stock=5, subtitle="x")
        assert deserialize_into(product, pb.Product(stock=0, subtitle="")) == ["subtitle", "stock"]
        assert (product.stock, product.subtitle) == (0, "")

    def test_a_field_mask_sets_what_is_not_present_too(self) -> None:
        product = Product(stock=5, weight=2.0, rank=3, name="x")
        mask = ["stock", "weight", "rank"]
        assert deserialize_into(product, pb.Product(name="y"), fields=mask) == mask
        assert (product.stock, product.weight, product.rank, product.name) == (None, 0.0, None, "x")

    def test_an_unknown_path_is_an_error(self) -> None:
        with pytest.raises(SerializationError, match=r"catalog\.City has no field 'mayor'"):
            deserialize_into(City(), pb.City(), fields=["mayor"])

    def test_a_foreign_key_from_a_number_or_a_nested_key(self) -> None:
        product = Product()
        assert deserialize_into(product, pb.ProductShapes(supplier=3)) == ["supplier"]
        assert product.supplier_id == 3
        assert deserialize_into(product, pb.Product(supplier={"pk": 4})) == ["supplier"]
        assert product.supplier_id == 4
        deserialize_into(product, pb.ProductShapes(), fields=["supplier"])
        assert product.supplier_id is None

    def test_of_a_oneof_only_the_chosen_member(self) -> None:
        payment = Payment(card="4111", voucher="old")
        assert deserialize_into(payment, pb.Payment(voucher="V")) == ["voucher"]
        assert (payment.card, payment.voucher) == ("4111", "V")

    def test_a_choice_comes_back_from_its_enum(self) -> None:
        product = Product()
        deserialize_into(product, pb.Product(status=pb.STATUS_SOLD_OUT))
        assert product.status == Product.Status.SOLD_OUT
        deserialize_into(product, pb.Product(), fields=["status"])
        assert product.status == ""

    def test_the_key_of_a_saved_row_is_not_changed(self, db: None) -> None:
        tag = Tag.objects.create(name="a")
        assert deserialize_into(tag, pb.Tag(id=tag.pk, name="b")) == ["name"]
        with pytest.raises(SerializationError, match=r"catalog\.Tag\.id .*key"):
            deserialize_into(tag, pb.Tag(id=tag.pk + 1))

    @pytest.mark.parametrize(
        ("message", "expected"),
        [
            (pb.Product(tags=[{"name": "a"}]), r"Product\.tags .*to-many"),
            (pb.Product(manual={"title": "a"}), r"Product\.manual .*other side"),
            (pb.Product(picture="/media/x.png"), r"Product\.picture .*file"),
            (pb.Product(label="x"), r"Product\.label .*no field"),
            (pb.Product(price="dear"), r"Product\.price .*DecimalField"),
            (pb.Product(sku="7"), r"Product\.sku .*UUIDField"),
            (pb.Unknown(flavour="x"), r"catalog\.Unknown\.flavour has no counterpart in Product"),
        ],
    )
    def test_what_cannot_be_set_is_an_error(self, message: Any, expected: str) -> None:
        with pytest.raises(SerializationError, match=expected) as caught:
            deserialize_into(Product(), message)
        assert "dear" not in str(caught.value)

    def test_without_time_zones_a_moment_is_local(self, settings: Any) -> None:
        settings.USE_TZ = False
        settings.TIME_ZONE = "Asia/Tokyo"
        product = Product()
        deserialize_into(product, pb.Product(created=Timestamp(seconds=1_704_067_200)))
        assert product.created == datetime.datetime(2024, 1, 1, 9)

    def test_a_wrapper_gives_its_value(self) -> None:
        product = Product(nickname="x")
        deserialize_into(product, pb.Product(nickname=StringValue(value="")))
        assert product.nickname == ""


class TestWhatSaysTheSameAlready:
    """A client reads, changes one thing, and writes: the rest stays as it was, letter by letter."""

    def test_json_keeps_its_spelling(self) -> None:
        product = Product(size={"width": 0, "height": 3})
        message = pb.Product(size={"height": 3})
        deserialize_into(product, message)
        assert product.size == {"width": 0, "height": 3}
        message.size.height = 4
        deserialize_into(product, message)
        assert product.size == {"width": 0, "height": 4}

    def test_a_float_keeps_its_digits(self) -> None:
        product = Product(weight=1 / 3)
        deserialize_into(product, rows_pb2.ProductShapesRow(weight=1 / 3))
        assert product.weight == 1 / 3
        deserialize_into(product, rows_pb2.ProductShapesRow(weight=0.1))
        assert product.weight == 0.1

    def test_text_that_says_less_is_refused(self) -> None:
        for text in ("1.005", "1e999999999", "NaN"):
            with pytest.raises(SerializationError, match=r"Product\.price .*DecimalField"):
                deserialize_into(Product(), pb.Product(price=text))
        product = Product()
        deserialize_into(product, pb.Product(price="1.500"))
        assert product.price == Decimal("1.5")

    def test_a_number_that_is_none_is_taken(self) -> None:
        """It is not equal to itself, which is no contradiction."""
        city = City()
        assert deserialize_into(city, pb.City(latitude=float("nan"))) == ["latitude"]
        assert city.latitude != city.latitude


class TestExclude:
    @pytest.mark.parametrize("exclude", ["name", "nam_e"])
    def test_a_text_is_refused(self, exclude: str) -> None:
        tag = Tag(name="before")
        with pytest.raises(TypeError, match=f"exclude must be a list of fields, not '{exclude}'"):
            deserialize_into(tag, pb.Tag(name="after"), exclude=exclude)
        assert tag.name == "before"

    def test_a_misspelt_name_is_refused(self) -> None:
        tag = Tag(name="before")
        with pytest.raises(SerializationError, match="Tag has no field 'nmae' to exclude"):
            deserialize_into(tag, pb.Tag(name="after"), exclude=["nmae"])
        assert tag.name == "before"

    def test_a_field_of_the_model_that_the_message_lacks_is_left_out(self) -> None:
        product = Product()
        names = [field.name for field in Product._meta.fields]
        lacking = [it for it in names if it not in pb.Tag.DESCRIPTOR.fields_by_name]
        assert deserialize_into(product, pb.Tag(name="x"), exclude=lacking) == ["name"]


class TestPaths:
    def test_all_fields(self) -> None:
        tag = Tag(name="before")
        assert deserialize_into(tag, pb.Tag(name="after"), fields=["*"], exclude=["id"]) == ["name"]
        assert tag.name == "after"

    def test_the_key_of_a_nested_message(self) -> None:
        product = Product()
        message = pb.Product(supplier={"pk": 7, "name": "other"})
        assert deserialize_into(product, message, fields=["supplier.pk"]) == ["supplier"]
        assert product.supplier_id == 7

    @pytest.mark.parametrize(
        ("path", "expected"),
        [
            ("supplier.name", r"Product\.supplier .*nothing can be set: 'id' is what"),
            ("supplier.nothing", r"Product\.supplier has nothing at 'nothing'"),
            ("name.first", r"Product\.name has nothing at 'first'"),
            ("created.seconds", r"Product\.created .*it is one value"),
            ("nothing", r"Product has no field 'nothing'"),
        ],
    )
    def test_other_paths_are_refused(self, path: str, expected: str) -> None:
        message = pb.Product(supplier={"pk": 7, "name": "other"})
        with pytest.raises(SerializationError, match=expected):
            deserialize_into(Product(), message, fields=[path])


class TestWhatClientsMaySend:
    """A few bytes cost no more than a few."""

    def test_a_zero_with_an_exponent(self) -> None:
        product = Product()
        deserialize_into(product, pb.Product(price="0e-999999999999999"))
        assert str(product.price) == "0"

    def test_a_path_that_comes_again_and_again(self) -> None:
        calls: list[str] = []

        class Counting(Tag):
            class Meta:
                proxy = True
                app_label = "catalog"

            def __setattr__(self, name: str, value: Any) -> None:
                calls.append(name)
                super().__setattr__(name, value)

        tag = Counting()
        calls.clear()
        deserialize_into(tag, pb.Tag(name="x"), fields=["name"] * 1000)
        assert calls == ["name"]

    def test_what_a_column_has_against_text_is_said_without_the_text(self) -> None:
        with pytest.raises(SerializationError) as caught:
            deserialize_into(Product(), pb.Product(price="secret"))
        assert str(caught.value).endswith(
            "cannot take Product.price: it is no valid DecimalField: “…” value must be a decimal "
            "number."
        )

    def test_words_that_may_hold_the_text_are_left_out(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(value: Any) -> Any:
            raise ValidationError(f"{value} is nothing")

        monkeypatch.setattr(Product._meta.get_field("price"), "to_python", refuse)
        with pytest.raises(SerializationError) as caught:
            deserialize_into(Product(), pb.Product(price="secret"))
        assert str(caught.value).endswith("it is no valid DecimalField")

    def test_text_that_is_none(self) -> None:
        with pytest.raises(SerializationError, match=r"Product\.price .*DecimalField"):
            deserialize_into(Product(), pb.Product(price="[" * 100_000))
        with pytest.raises(SerializationError, match=r"ProductShapes\.attributes .*JSONField"):
            deserialize_into(Product(), pb.ProductShapes(attributes="[" * 100_000))


class TestKeysOfNestedMessages:
    def test_one_that_names_no_object(self) -> None:
        """It would set the key to null, or to an object 0."""
        product = Product(supplier_id=7)
        with pytest.raises(SerializationError, match=r"Product\.supplier .*names no object"):
            deserialize_into(product, pb.Product(supplier={"name": "other"}))
        assert product.supplier_id == 7

    def test_two_fields_that_differ(self) -> None:
        with pytest.raises(SerializationError, match="another field says otherwise"):
            deserialize_into(Product(), pb.Product(supplier={"pk": 1}, supplier_id=2))
        product = Product()
        message = pb.Product(supplier={"pk": 1}, supplier_id=1)
        assert deserialize_into(product, message) == ["supplier"]


class TestErrors:
    def test_values_are_not_shown(self) -> None:
        with pytest.raises(SerializationError, match=r"Product\.counts") as caught:
            serialize_model(pb.Product, Product(pk=1, counts={"a": 2**40}), [NoTags(Product)])
        assert str(2**40) not in str(caught.value)

    def test_a_long_path_is_cut(self) -> None:
        with pytest.raises(SerializationError) as caught:
            deserialize_into(Product(), pb.Product(), fields=["x" * 600_000])
        assert len(str(caught.value)) < 300

    def test_a_path_with_nothing_behind_its_dot(self) -> None:
        with pytest.raises(SerializationError, match="has nothing at ''"):
            deserialize_into(Product(), pb.Product(name="x"), fields=["name."])

    def test_two_keys_that_are_one(self) -> None:
        product = Product(pk=1, counts={"a": 1, 1: 1, "1": 2})
        with pytest.raises(SerializationError, match=r"Product\.counts .*two of its keys"):
            serialize_model(pb.Product, product, [NoTags(Product)])

    def test_a_number_that_would_be_zero(self) -> None:
        with pytest.raises(SerializationError, match=r"ProductShapesRow\.weight .*too small"):
            serialize_model(rows_pb2.ProductShapesRow, Product(pk=1, weight=1e-50))

    @pytest.mark.django_db
    def test_an_object_that_is_not_there(self) -> None:
        product = Product(pk=1, supplier_id=999)
        with pytest.raises(SerializationError, match=r"Product\.supplier .*not there"):
            serialize_model(pb.Product, product, [NoTags(Product)])
