"""The tables."""

from __future__ import annotations

import math

from django.core.exceptions import ValidationError
from django.core.validators import (
    MaxValueValidator,
    MinValueValidator,
    ProhibitNullCharactersValidator,
)
from django.db import models


def validate_finite(value: float) -> None:
    """Refuse NaN, which is neither below a minimum nor above a maximum."""
    if not math.isfinite(value):
        raise ValidationError("This is not a finite number.")


# protobuf strings may hold NUL characters, PostgreSQL's may not.
no_nul = ProhibitNullCharactersValidator()


class Continent(models.TextChoices):
    """GeoNames' codes; the names are those of the enum in atlas.proto."""

    AFRICA = "AF"
    ANTARCTICA = "AN"
    ASIA = "AS"
    EUROPE = "EU"
    NORTH_AMERICA = "NA"
    OCEANIA = "OC"
    SOUTH_AMERICA = "SA"


class Country(models.Model):
    """A country, by its ISO 3166-1 code."""

    code = models.CharField(max_length=2, primary_key=True)
    iso3 = models.CharField(max_length=3)
    name = models.CharField(max_length=100)
    capital = models.CharField(max_length=100, blank=True)
    continent = models.CharField(max_length=2, choices=Continent.choices)
    currency_code = models.CharField(max_length=3, blank=True)
    area_km2 = models.BigIntegerField()
    population = models.BigIntegerField()

    class Meta:
        verbose_name_plural = "countries"
        ordering = ("name",)

    def __str__(self) -> str:
        return self.name


class City(models.Model):
    """A city. ``geoname_id`` is null for one that a client brought in through ImportCities."""

    geoname_id = models.BigIntegerField(unique=True, null=True, blank=True)
    name = models.CharField(max_length=200, validators=[no_nul])
    country = models.ForeignKey(Country, on_delete=models.CASCADE, related_name="cities")
    latitude = models.FloatField(
        validators=[validate_finite, MinValueValidator(-90.0), MaxValueValidator(90.0)]
    )
    longitude = models.FloatField(
        validators=[validate_finite, MinValueValidator(-180.0), MaxValueValidator(180.0)]
    )
    population = models.BigIntegerField(validators=[MinValueValidator(0)])
    timezone = models.CharField(max_length=50, blank=True, validators=[no_nul])

    class Meta:
        verbose_name_plural = "cities"
        # The most populous first. The id makes the order total, and only a total order can be cut
        # into pages without losing or repeating a row.
        ordering = ("-population", "id")
        indexes = (
            models.Index(fields=("-population", "id"), name="city_by_population"),
            # For the bands of latitude that nearest.py searches.
            models.Index(fields=("latitude",), name="city_by_latitude"),
        )

    def __str__(self) -> str:
        return self.name
