"""The nearest city, on any database."""

from __future__ import annotations

from math import asin, cos, degrees, radians, sin, sqrt

from places.models import City

EARTH_RADIUS_KM = 6371.0088  # mean radius, IUGG
FIRST_BAND = 1.0


def nearest_city(latitude: float, longitude: float) -> tuple[City, float]:
    """Return the city nearest to a point, and its distance in kilometres along a great circle.

    Two points are never nearer to each other than their latitudes are. So the nearest city within
    so many degrees of latitude, north and south, is the nearest of all as soon as it is no farther
    off than that; until then the band doubles. This holds at the poles and across the date line
    too, where a box of latitude and longitude would go wrong.

    Args:
        latitude: Degrees, -90 to 90.
        longitude: Degrees, -180 to 180.

    Raises:
        City.DoesNotExist: There are no cities.
    """
    band = FIRST_BAND
    while True:
        rows = City.objects.filter(latitude__range=(latitude - band, latitude + band))
        # Plain tuples in no order: a thousand model instances would be made to throw them away.
        best = min(
            (
                (_arc(latitude, longitude, row_latitude, row_longitude), pk)
                for pk, row_latitude, row_longitude in rows.order_by().values_list(
                    "pk", "latitude", "longitude"
                )
            ),
            default=None,
        )
        if best is not None and best[0] <= band:
            arc, pk = best
            return City.objects.get(pk=pk), radians(arc) * EARTH_RADIUS_KM
        if band >= 180.0:
            raise City.DoesNotExist("The atlas holds no cities.")
        band *= 2


def _arc(latitude: float, longitude: float, to_latitude: float, to_longitude: float) -> float:
    """Return the angle between two points, in degrees (the haversine formula)."""
    from_phi, to_phi = radians(latitude), radians(to_latitude)
    half = (
        sin((to_phi - from_phi) / 2) ** 2
        + cos(from_phi) * cos(to_phi) * sin(radians(to_longitude - longitude) / 2) ** 2
    )
    # Rounding can put the half chord of two opposite points a hair above 1.
    return degrees(2 * asin(min(1.0, sqrt(half))))
