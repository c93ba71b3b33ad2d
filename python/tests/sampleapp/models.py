from django.db import models


class Visitor(models.Model):
    """Somebody who was greeted."""

    name = models.CharField(max_length=100)

    def __str__(self) -> str:
        return self.name
