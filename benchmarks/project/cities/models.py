"""The table that the database works read."""

from django.db import models


class City(models.Model):
    """A city: with its primary key, the eight scalar fields of the message `bench.City`."""

    name = models.CharField(max_length=100)
    country_code = models.CharField(max_length=2)
    timezone = models.CharField(max_length=40)
    latitude = models.FloatField()
    longitude = models.FloatField()
    population = models.PositiveBigIntegerField()
    is_capital = models.BooleanField(default=False)

    def __str__(self) -> str:
        return self.name
