"""From rows to messages.

``serialize_model(pb.City, city, SERIALIZERS)`` fills each field of the message from the model's
field of the same name. A serializer says what to do where the two differ: its ``get_<field>``
methods are named after fields of the message.
"""

from __future__ import annotations

from django_grpc.serializers import BaseModelSerializer

from places.models import City, Continent, Country
from places.pb import atlas_pb2 as pb

LARGEST_CITIES = 5


class CitySerializer(BaseModelSerializer):
    """A city carries the code of its country, not the whole country."""

    def get_country_code(self, city: City) -> str:
        """Read the foreign key's own column: ``city.country.code`` would cost a query a row."""
        return city.country_id


class CountrySerializer(BaseModelSerializer):
    """A country, with a few of its cities inside. ``city_count`` is an annotation of the query."""

    def get_continent(self, country: Country) -> int:
        """Turn Django's choice ("EU") into the number of the proto's enum (CONTINENT_EUROPE)."""
        return pb.Continent.Value(f"CONTINENT_{Continent(country.continent).name}")

    def get_city_count(self, country: Country) -> int:
        """Read the annotation that the servicer's query made."""
        city_count: int = country.city_count  # type: ignore[attr-defined]
        return city_count

    def get_largest_cities(self, country: Country) -> list[pb.City]:
        """Nest messages: the model's own order puts the most populous first."""
        cities = country.cities.all()[:LARGEST_CITIES]
        return [self.serialize_model(pb.City, city, SERIALIZERS) for city in cities]


SERIALIZERS = (CitySerializer(City), CountrySerializer(Country))
