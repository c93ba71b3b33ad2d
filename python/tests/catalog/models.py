"""Models with every kind of field that the serializers know."""

from __future__ import annotations

import uuid
from decimal import Decimal

from django.contrib.contenttypes.fields import GenericForeignKey, GenericRelation
from django.contrib.contenttypes.models import ContentType
from django.db import models


class City(models.Model):
    name = models.CharField(max_length=100)
    country = models.CharField(max_length=2)
    population = models.IntegerField()
    latitude = models.FloatField()
    longitude = models.FloatField()
    timezone = models.CharField(max_length=40)
    capital = models.BooleanField()

    def __str__(self) -> str:
        return self.name


class Supplier(models.Model):
    name = models.CharField(max_length=100)

    def __str__(self) -> str:
        return self.name


class Tag(models.Model):
    name = models.CharField(max_length=100)

    def __str__(self) -> str:
        return self.name


class Note(models.Model):
    text = models.TextField()
    content_type = models.ForeignKey(ContentType, on_delete=models.CASCADE)
    object_id = models.PositiveIntegerField()
    content_object = GenericForeignKey()

    def __str__(self) -> str:
        return self.text


class Product(models.Model):
    class Status(models.TextChoices):
        ON_SALE = "on sale", "On sale"
        SOLD_OUT = "so", "Sold out"
        LOST = "lost", "Lost"

    class Grade(models.IntegerChoices):
        PLAIN = 1
        FINE = 2

    name = models.CharField(max_length=100)
    subtitle = models.CharField(max_length=100, blank=True, default="")
    stock = models.IntegerField(null=True)
    price = models.DecimalField(max_digits=8, decimal_places=2, default=Decimal(0))
    weight = models.FloatField(null=True)
    sku = models.UUIDField(default=uuid.uuid4)
    status = models.CharField(max_length=10, choices=Status.choices, blank=True)
    grade = models.IntegerField(choices=Grade.choices, default=Grade.PLAIN)
    active = models.BooleanField(null=True)
    created = models.DateTimeField(null=True)
    available_on = models.DateField(null=True)
    opens = models.TimeField(null=True)
    warranty = models.DurationField(null=True)
    attributes = models.JSONField(null=True)
    counts = models.JSONField(null=True)
    size = models.JSONField(null=True)
    sizes = models.JSONField(null=True)
    keywords = models.JSONField(null=True)
    anything = models.JSONField(null=True)
    picture = models.FileField(upload_to="pictures", blank=True)
    payload = models.BinaryField(null=True)
    nickname = models.CharField(max_length=100, null=True)  # noqa: DJ001
    rank = models.IntegerField(null=True)
    supplier = models.ForeignKey(
        Supplier, on_delete=models.CASCADE, null=True, related_name="products"
    )
    tags = models.ManyToManyField(Tag)
    notes = GenericRelation(Note)

    def __str__(self) -> str:
        return self.name

    @property
    def label(self) -> str:
        return f"{self.name}!"

    @property
    def checked(self) -> list[object]:
        return [self.created] if self.created else []


class Manual(models.Model):
    title = models.CharField(max_length=100)
    product = models.OneToOneField(Product, on_delete=models.CASCADE)

    def __str__(self) -> str:
        return self.title


class Review(models.Model):
    stars = models.IntegerField()
    product = models.ForeignKey(Product, on_delete=models.CASCADE)

    def __str__(self) -> str:
        return str(self.stars)


class Payment(models.Model):
    card = models.CharField(max_length=30, blank=True)
    voucher = models.CharField(max_length=30, null=True)  # noqa: DJ001
    supplier = models.ForeignKey(Supplier, on_delete=models.CASCADE, null=True)

    def __str__(self) -> str:
        return self.card
