"""The app's entry in Django's registry."""

from django.apps import AppConfig

from cities import probe


class CitiesConfig(AppConfig):
    """Counts database connections from the first one on (see `cities.probe`)."""

    name = "cities"

    def ready(self) -> None:
        probe.count_connections()
