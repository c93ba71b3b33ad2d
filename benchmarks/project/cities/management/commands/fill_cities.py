"""`manage.py fill_cities`: the same rows for every server."""

from typing import Any

from django.core.management.base import BaseCommand
from django.db import transaction

from cities.models import City
from cities.rows import ROW_COUNT, row


class Command(BaseCommand):
    """Replaces the table's rows with those of `cities.rows`."""

    help = "Fill the table of cities"

    def handle(self, *args: Any, **options: Any) -> None:
        with transaction.atomic():
            City.objects.all().delete()
            City.objects.bulk_create(
                [City(**row(pk)._asdict()) for pk in range(1, ROW_COUNT + 1)], batch_size=100
            )
        self.stdout.write(f"{ROW_COUNT} cities")
