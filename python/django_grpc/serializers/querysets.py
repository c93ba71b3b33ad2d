"""Querysets straight to the wire: no model instance and no message object for a row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, overload

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import (
    BooleanField,
    ExpressionWrapper,
    F,
    Field,
    Func,
    Manager,
    QuerySet,
    Value,
)
from django.db.models.query import ModelIterable, ValuesListIterable
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message_factory import GetMessageClass

from django_grpc._engine import RowEncoder, RowIterator, make_row_encoder

from .arguments import require_chunk_size, require_message_class, sequence_of
from .errors import SerializationError
from .row_plan import Columns, Scope, plan_message
from .schema import is_map, is_repeated, message_type
from .values import EPOCH


class _RowPlan(NamedTuple):
    encoder: RowEncoder
    #: What `values_list` is asked for, in the order of the encoder's columns.
    columns: tuple[str, ...]
    #: The same without Django's converters where booleans have any, or None where nothing differs.
    unconverted: tuple[Any, ...] | None


#: Plans by message class, model and annotations; serializers only decide whether there is one.
_plans: dict[tuple[Any, type, frozenset[str]], _RowPlan] = {}
#: Whether a database backend converts booleans, by the class of its operations.
_boolean_converters: dict[type, bool] = {}


@overload
def serialize_queryset(
    message_class: Any,
    queryset: QuerySet[Any] | Manager[Any],
    serializers: Iterable[Any] = (),
    /,
    *,
    chunk_size: int = 2000,
) -> RowIterator: ...
@overload
def serialize_queryset(
    message_class: Any,
    queryset: QuerySet[Any] | Manager[Any],
    serializers: Iterable[Any] = (),
    /,
    *,
    field: str,
    **fields: Any,
) -> Any: ...
def serialize_queryset(
    message_class: Any,
    queryset: Any,
    serializers: Iterable[Any] = (),
    /,
    *,
    field: str | None = None,
    chunk_size: int = 2000,
    **fields: Any,
) -> Any:
    """Encode a queryset's rows, for a list or for a server stream.

        return serialize_queryset(CityList, cities[:1000], field="cities", next_page_token="...")
        return serialize_queryset(City, cities)

    The query runs anew, also where the queryset was evaluated before, and selects only the columns
    that the messages need; foreign keys in message fields are joined. The rules are those of
    `serialize_model`; what needs an instance is refused. What is returned is for the engine to
    send, as it is; a test asks `SerializedMessage.message()`.

    Args:
        message_class: A generated message class: of a row, or with `field` of the list.
        queryset: A queryset of model instances, or a manager.
        serializers: What `serialize_model` takes; a `get_<field>` method that the messages need is
            refused.
        field: The repeated field of `message_class` that the rows fill. The query then runs at
            once. Without it the rows are messages of their own, and the query runs when the first
            is asked for.
        chunk_size: Rows that a stream fetches from the database at once.
        fields: The other fields of the list, as its constructor takes them.

    Returns:
        A `SerializedMessage` of the list, or an iterator over one for each row; closing it closes
        the query. Typed as what a servicer's signature says in their place.

    Raises:
        SerializationError: The model has nothing for a message field, or rows don't hold it, or
            (from the iterator: when it comes to it) a value does not fit.
        TypeError: One of the arguments is something else.
        ValueError: `chunk_size` is below 1.
    """
    require_message_class(message_class)
    if isinstance(queryset, Manager):
        queryset = queryset.all()
    if not isinstance(queryset, QuerySet) or not issubclass(
        queryset._iterable_class, ModelIterable
    ):
        raise SerializationError(
            f"{message_class.DESCRIPTOR.full_name} cannot be filled from {_described(queryset)}: "
            "serialize_queryset takes a queryset of model instances"
        )
    if queryset.query.combinator:
        # Fewer columns may make fewer rows: a union drops what is twice.
        raise SerializationError(
            f"{message_class.DESCRIPTOR.full_name} cannot be filled from rows of a "
            f"{queryset.query.combinator}: use serialize_model, or filter with Q objects instead"
        )
    serializers = sequence_of(serializers)
    if field is None:
        if fields:
            raise TypeError(f"{', '.join(fields)}: there is no list without field=")
        require_chunk_size(chunk_size)
        plan = _plan(message_class, queryset, serializers)
        return plan.encoder.stream(_rows(queryset, plan, chunk_size))
    descriptor = _list_field(message_class, field)
    if field in fields:
        raise TypeError(f"{field} is filled from the queryset")
    plan = _plan(GetMessageClass(message_type(descriptor)), queryset, serializers)
    beginning = message_class(**fields).SerializeToString() if fields else b""
    return plan.encoder.fill(message_class, beginning, descriptor.number, _rows(queryset, plan))


def _described(queryset: Any) -> str:
    if isinstance(queryset, QuerySet):
        return f"the values or dates of a queryset of {queryset.model.__name__}"
    return f"a {type(queryset).__name__}"


def _list_field(message_class: Any, name: str) -> FieldDescriptor:
    descriptor = message_class.DESCRIPTOR
    field: FieldDescriptor | None = descriptor.fields_by_name.get(name)
    if field is None:
        raise SerializationError(f"{descriptor.full_name} has no field {name!r}")
    if field.message_type is None or not is_repeated(field) or is_map(field):
        raise SerializationError(f"{field.full_name} is no repeated field of messages")
    return field


def _plan(message_class: Any, queryset: QuerySet[Any], serializers: Sequence[Any]) -> _RowPlan:
    query = queryset.query
    annotations = frozenset((*query.annotation_select, *query.extra_select))
    key = (message_class, queryset.model, annotations)
    plan = None if serializers else _plans.get(key)
    if plan is None:
        columns = Columns()
        scope = Scope(queryset.model, "", annotations, serializers)
        message = plan_message(message_class, scope, columns)
        names, raw = columns.names or ("pk",), columns.raw
        plan = _RowPlan(
            make_row_encoder(message_class, message, EPOCH),
            names,
            tuple(_unconverted(it) if it in raw else it for it in names) if raw else None,
        )
        if not serializers:
            _plans[key] = plan
    return plan


def _rows(
    queryset: QuerySet[Any], plan: _RowPlan, chunk_size: int | None = None
) -> Iterable[tuple[Any, ...]]:
    """Return what runs the query when it is iterated.

    As `QuerySet.iterator` with a `chunk_size`, else without its server-side cursor; but neither
    with the list that a queryset keeps nor with a generator between the cursor and the engine.
    """
    columns: Iterable[Any] = plan.columns
    query = queryset.query
    connection = connections[queryset.db]
    if query.distinct:
        # Instances are distinct by all that is selected; fewer columns would make fewer rows.
        columns = dict.fromkeys((*columns, "pk", *query.annotation_select, *query.extra_select))
    elif plan.unconverted and query.group_by is None and _converts_booleans(connection):
        columns = plan.unconverted
    rows = queryset.values_list(*columns)
    if chunk_size is None:
        # A cursor on the database's side would cost a list more than it saves it.
        stock_cursor = BaseDatabaseWrapper.chunked_cursor
        in_chunks = getattr(type(connection), "chunked_cursor", None) is stock_cursor
        return ValuesListIterable(rows, chunked_fetch=in_chunks)
    in_chunks = not connection.settings_dict.get("DISABLE_SERVER_SIDE_CURSORS")
    return ValuesListIterable(rows, chunked_fetch=in_chunks, chunk_size=chunk_size)


def _unconverted(name: str) -> Func:
    """Return a boolean column as the number that the database has.

    Called for each row, Django's converter and the one that it registers with sqlite3 cost more
    than encoding the row. `+` takes the column its declared type, by which sqlite3 finds its own.
    """
    return Func(F(name), template="+%(expressions)s", output_field=Field())


def _converts_booleans(connection: BaseDatabaseWrapper) -> bool:
    operations = connection.ops
    found = _boolean_converters.get(type(operations))
    if found is None:
        truth = ExpressionWrapper(Value(True), output_field=BooleanField())
        found = bool(operations.get_db_converters(truth))
        _boolean_converters[type(operations)] = found
    return found
