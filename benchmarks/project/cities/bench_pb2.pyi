from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class HelloRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class HelloReply(_message.Message):
    __slots__ = ("message",)
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    message: str
    def __init__(self, message: _Optional[str] = ...) -> None: ...

class GetCityRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: int
    def __init__(self, id: _Optional[int] = ...) -> None: ...

class ListCitiesRequest(_message.Message):
    __slots__ = ("limit",)
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    limit: int
    def __init__(self, limit: _Optional[int] = ...) -> None: ...

class City(_message.Message):
    __slots__ = ("id", "name", "country_code", "timezone", "latitude", "longitude", "population", "is_capital")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    COUNTRY_CODE_FIELD_NUMBER: _ClassVar[int]
    TIMEZONE_FIELD_NUMBER: _ClassVar[int]
    LATITUDE_FIELD_NUMBER: _ClassVar[int]
    LONGITUDE_FIELD_NUMBER: _ClassVar[int]
    POPULATION_FIELD_NUMBER: _ClassVar[int]
    IS_CAPITAL_FIELD_NUMBER: _ClassVar[int]
    id: int
    name: str
    country_code: str
    timezone: str
    latitude: float
    longitude: float
    population: int
    is_capital: bool
    def __init__(self, id: _Optional[int] = ..., name: _Optional[str] = ..., country_code: _Optional[str] = ..., timezone: _Optional[str] = ..., latitude: _Optional[float] = ..., longitude: _Optional[float] = ..., population: _Optional[int] = ..., is_capital: _Optional[bool] = ...) -> None: ...

class CityList(_message.Message):
    __slots__ = ("cities",)
    CITIES_FIELD_NUMBER: _ClassVar[int]
    cities: _containers.RepeatedCompositeFieldContainer[City]
    def __init__(self, cities: _Optional[_Iterable[_Union[City, _Mapping]]] = ...) -> None: ...

class Number(_message.Message):
    __slots__ = ("value",)
    VALUE_FIELD_NUMBER: _ClassVar[int]
    value: int
    def __init__(self, value: _Optional[int] = ...) -> None: ...

class Blob(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class BlockRequest(_message.Message):
    __slots__ = ("milliseconds",)
    MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    milliseconds: int
    def __init__(self, milliseconds: _Optional[int] = ...) -> None: ...

class FailRequest(_message.Message):
    __slots__ = ("way",)
    class Way(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        RAISE: _ClassVar[FailRequest.Way]
        ABORT: _ClassVar[FailRequest.Way]
        SET_CODE: _ClassVar[FailRequest.Way]
    RAISE: FailRequest.Way
    ABORT: FailRequest.Way
    SET_CODE: FailRequest.Way
    WAY_FIELD_NUMBER: _ClassVar[int]
    way: FailRequest.Way
    def __init__(self, way: _Optional[_Union[FailRequest.Way, str]] = ...) -> None: ...

class ProbeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ProbeReply(_message.Message):
    __slots__ = ("allocated_blocks", "gc_objects", "total_references", "references", "threads", "open_files", "connections_opened")
    class ReferencesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    ALLOCATED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    GC_OBJECTS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_REFERENCES_FIELD_NUMBER: _ClassVar[int]
    REFERENCES_FIELD_NUMBER: _ClassVar[int]
    THREADS_FIELD_NUMBER: _ClassVar[int]
    OPEN_FILES_FIELD_NUMBER: _ClassVar[int]
    CONNECTIONS_OPENED_FIELD_NUMBER: _ClassVar[int]
    allocated_blocks: int
    gc_objects: int
    total_references: int
    references: _containers.ScalarMap[str, int]
    threads: int
    open_files: int
    connections_opened: int
    def __init__(self, allocated_blocks: _Optional[int] = ..., gc_objects: _Optional[int] = ..., total_references: _Optional[int] = ..., references: _Optional[_Mapping[str, int]] = ..., threads: _Optional[int] = ..., open_files: _Optional[int] = ..., connections_opened: _Optional[int] = ...) -> None: ...
