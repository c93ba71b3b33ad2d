import django.core.validators
import django.db.models.deletion
from django.db import migrations, models

import places.models


class Migration(migrations.Migration):
    initial = True

    dependencies = []

    operations = [
        migrations.CreateModel(
            name="Country",
            fields=[
                ("code", models.CharField(max_length=2, primary_key=True, serialize=False)),
                ("iso3", models.CharField(max_length=3)),
                ("name", models.CharField(max_length=100)),
                ("capital", models.CharField(blank=True, max_length=100)),
                (
                    "continent",
                    models.CharField(
                        choices=[
                            ("AF", "Africa"),
                            ("AN", "Antarctica"),
                            ("AS", "Asia"),
                            ("EU", "Europe"),
                            ("NA", "North America"),
                            ("OC", "Oceania"),
                            ("SA", "South America"),
                        ],
                        max_length=2,
                    ),
                ),
                ("currency_code", models.CharField(blank=True, max_length=3)),
                ("area_km2", models.BigIntegerField()),
                ("population", models.BigIntegerField()),
            ],
            options={
                "verbose_name_plural": "countries",
                "ordering": ("name",),
            },
        ),
        migrations.CreateModel(
            name="City",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("geoname_id", models.BigIntegerField(blank=True, null=True, unique=True)),
                (
                    "name",
                    models.CharField(
                        max_length=200,
                        validators=[django.core.validators.ProhibitNullCharactersValidator()],
                    ),
                ),
                (
                    "latitude",
                    models.FloatField(
                        validators=[
                            places.models.validate_finite,
                            django.core.validators.MinValueValidator(-90.0),
                            django.core.validators.MaxValueValidator(90.0),
                        ]
                    ),
                ),
                (
                    "longitude",
                    models.FloatField(
                        validators=[
                            places.models.validate_finite,
                            django.core.validators.MinValueValidator(-180.0),
                            django.core.validators.MaxValueValidator(180.0),
                        ]
                    ),
                ),
                (
                    "population",
                    models.BigIntegerField(
                        validators=[django.core.validators.MinValueValidator(0)]
                    ),
                ),
                (
                    "timezone",
                    models.CharField(
                        blank=True,
                        max_length=50,
                        validators=[django.core.validators.ProhibitNullCharactersValidator()],
                    ),
                ),
                (
                    "country",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="cities",
                        to="places.country",
                    ),
                ),
            ],
            options={
                "verbose_name_plural": "cities",
                "ordering": ("-population", "id"),
                "indexes": [
                    models.Index(fields=["-population", "id"], name="city_by_population"),
                    models.Index(fields=["latitude"], name="city_by_latitude"),
                ],
            },
        ),
    ]
