from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Continent(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CONTINENT_UNSPECIFIED: _ClassVar[Continent]
    CONTINENT_AFRICA: _ClassVar[Continent]
    CONTINENT_ANTARCTICA: _ClassVar[Continent]
    CONTINENT_ASIA: _ClassVar[Continent]
    CONTINENT_EUROPE: _ClassVar[Continent]
    CONTINENT_NORTH_AMERICA: _ClassVar[Continent]
    CONTINENT_OCEANIA: _ClassVar[Continent]
    CONTINENT_SOUTH_AMERICA: _ClassVar[Continent]
CONTINENT_UNSPECIFIED: Continent
CONTINENT_AFRICA: Continent
CONTINENT_ANTARCTICA: Continent
CONTINENT_ASIA: Continent
CONTINENT_EUROPE: Continent
CONTINENT_NORTH_AMERICA: Continent
CONTINENT_OCEANIA: Continent
CONTINENT_SOUTH_AMERICA: Continent

class AboutRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AboutResponse(_message.Message):
    __slots__ = ("countries", "cities", "database")
    COUNTRIES_FIELD_NUMBER: _ClassVar[int]
    CITIES_FIELD_NUMBER: _ClassVar[int]
    DATABASE_FIELD_NUMBER: _ClassVar[int]
    countries: int
    cities: int
    database: str
    def __init__(self, countries: _Optional[int] = ..., cities: _Optional[int] = ..., database: _Optional[str] = ...) -> None: ...

class City(_message.Message):
    __slots__ = ("id", "geoname_id", "name", "country_code", "latitude", "longitude", "population", "timezone")
    ID_FIELD_NUMBER: _ClassVar[int]
    GEONAME_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    COUNTRY_CODE_FIELD_NUMBER: _ClassVar[int]
    LATITUDE_FIELD_NUMBER: _ClassVar[int]
    LONGITUDE_FIELD_NUMBER: _ClassVar[int]
    POPULATION_FIELD_NUMBER: _ClassVar[int]
    TIMEZONE_FIELD_NUMBER: _ClassVar[int]
    id: int
    geoname_id: int
    name: str
    country_code: str
    latitude: float
    longitude: float
    population: int
    timezone: str
    def __init__(self, id: _Optional[int] = ..., geoname_id: _Optional[int] = ..., name: _Optional[str] = ..., country_code: _Optional[str] = ..., latitude: _Optional[float] = ..., longitude: _Optional[float] = ..., population: _Optional[int] = ..., timezone: _Optional[str] = ...) -> None: ...

class Country(_message.Message):
    __slots__ = ("code", "iso3", "name", "capital", "continent", "currency_code", "area_km2", "population", "city_count", "largest_cities")
    CODE_FIELD_NUMBER: _ClassVar[int]
    ISO3_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    CAPITAL_FIELD_NUMBER: _ClassVar[int]
    CONTINENT_FIELD_NUMBER: _ClassVar[int]
    CURRENCY_CODE_FIELD_NUMBER: _ClassVar[int]
    AREA_KM2_FIELD_NUMBER: _ClassVar[int]
    POPULATION_FIELD_NUMBER: _ClassVar[int]
    CITY_COUNT_FIELD_NUMBER: _ClassVar[int]
    LARGEST_CITIES_FIELD_NUMBER: _ClassVar[int]
    code: str
    iso3: str
    name: str
    capital: str
    continent: Continent
    currency_code: str
    area_km2: int
    population: int
    city_count: int
    largest_cities: _containers.RepeatedCompositeFieldContainer[City]
    def __init__(self, code: _Optional[str] = ..., iso3: _Optional[str] = ..., name: _Optional[str] = ..., capital: _Optional[str] = ..., continent: _Optional[_Union[Continent, str]] = ..., currency_code: _Optional[str] = ..., area_km2: _Optional[int] = ..., population: _Optional[int] = ..., city_count: _Optional[int] = ..., largest_cities: _Optional[_Iterable[_Union[City, _Mapping]]] = ...) -> None: ...

class GetCityRequest(_message.Message):
    __slots__ = ("id", "geoname_id")
    ID_FIELD_NUMBER: _ClassVar[int]
    GEONAME_ID_FIELD_NUMBER: _ClassVar[int]
    id: int
    geoname_id: int
    def __init__(self, id: _Optional[int] = ..., geoname_id: _Optional[int] = ...) -> None: ...

class GetCountryRequest(_message.Message):
    __slots__ = ("code",)
    CODE_FIELD_NUMBER: _ClassVar[int]
    code: str
    def __init__(self, code: _Optional[str] = ...) -> None: ...

class CityFilter(_message.Message):
    __slots__ = ("country_code", "min_population", "name_prefix")
    COUNTRY_CODE_FIELD_NUMBER: _ClassVar[int]
    MIN_POPULATION_FIELD_NUMBER: _ClassVar[int]
    NAME_PREFIX_FIELD_NUMBER: _ClassVar[int]
    country_code: str
    min_population: int
    name_prefix: str
    def __init__(self, country_code: _Optional[str] = ..., min_population: _Optional[int] = ..., name_prefix: _Optional[str] = ...) -> None: ...

class ListCitiesRequest(_message.Message):
    __slots__ = ("filter", "page_size", "page_token")
    FILTER_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    filter: CityFilter
    page_size: int
    page_token: str
    def __init__(self, filter: _Optional[_Union[CityFilter, _Mapping]] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListCitiesResponse(_message.Message):
    __slots__ = ("cities", "next_page_token", "total_size")
    CITIES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    TOTAL_SIZE_FIELD_NUMBER: _ClassVar[int]
    cities: _containers.RepeatedCompositeFieldContainer[City]
    next_page_token: str
    total_size: int
    def __init__(self, cities: _Optional[_Iterable[_Union[City, _Mapping]]] = ..., next_page_token: _Optional[str] = ..., total_size: _Optional[int] = ...) -> None: ...

class StreamCitiesRequest(_message.Message):
    __slots__ = ("filter",)
    FILTER_FIELD_NUMBER: _ClassVar[int]
    filter: CityFilter
    def __init__(self, filter: _Optional[_Union[CityFilter, _Mapping]] = ...) -> None: ...

class NewCity(_message.Message):
    __slots__ = ("name", "country_code", "latitude", "longitude", "population", "timezone")
    NAME_FIELD_NUMBER: _ClassVar[int]
    COUNTRY_CODE_FIELD_NUMBER: _ClassVar[int]
    LATITUDE_FIELD_NUMBER: _ClassVar[int]
    LONGITUDE_FIELD_NUMBER: _ClassVar[int]
    POPULATION_FIELD_NUMBER: _ClassVar[int]
    TIMEZONE_FIELD_NUMBER: _ClassVar[int]
    name: str
    country_code: str
    latitude: float
    longitude: float
    population: int
    timezone: str
    def __init__(self, name: _Optional[str] = ..., country_code: _Optional[str] = ..., latitude: _Optional[float] = ..., longitude: _Optional[float] = ..., population: _Optional[int] = ..., timezone: _Optional[str] = ...) -> None: ...

class ImportCitiesResponse(_message.Message):
    __slots__ = ("added", "population", "by_country", "ids")
    class CountryTally(_message.Message):
        __slots__ = ("country_code", "cities")
        COUNTRY_CODE_FIELD_NUMBER: _ClassVar[int]
        CITIES_FIELD_NUMBER: _ClassVar[int]
        country_code: str
        cities: int
        def __init__(self, country_code: _Optional[str] = ..., cities: _Optional[int] = ...) -> None: ...
    ADDED_FIELD_NUMBER: _ClassVar[int]
    POPULATION_FIELD_NUMBER: _ClassVar[int]
    BY_COUNTRY_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    added: int
    population: int
    by_country: _containers.RepeatedCompositeFieldContainer[ImportCitiesResponse.CountryTally]
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, added: _Optional[int] = ..., population: _Optional[int] = ..., by_country: _Optional[_Iterable[_Union[ImportCitiesResponse.CountryTally, _Mapping]]] = ..., ids: _Optional[_Iterable[int]] = ...) -> None: ...

class Point(_message.Message):
    __slots__ = ("latitude", "longitude")
    LATITUDE_FIELD_NUMBER: _ClassVar[int]
    LONGITUDE_FIELD_NUMBER: _ClassVar[int]
    latitude: float
    longitude: float
    def __init__(self, latitude: _Optional[float] = ..., longitude: _Optional[float] = ...) -> None: ...

class NearestCityResponse(_message.Message):
    __slots__ = ("city", "distance_km")
    CITY_FIELD_NUMBER: _ClassVar[int]
    DISTANCE_KM_FIELD_NUMBER: _ClassVar[int]
    city: City
    distance_km: float
    def __init__(self, city: _Optional[_Union[City, _Mapping]] = ..., distance_km: _Optional[float] = ...) -> None: ...
