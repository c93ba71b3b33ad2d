import uuid
from decimal import Decimal

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True

    dependencies = [
        ("contenttypes", "0002_remove_content_type_name"),
    ]

    operations = [
        migrations.CreateModel(
            name="City",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("name", models.CharField(max_length=100)),
                ("country", models.CharField(max_length=2)),
                ("population", models.IntegerField()),
                ("latitude", models.FloatField()),
                ("longitude", models.FloatField()),
                ("timezone", models.CharField(max_length=40)),
                ("capital", models.BooleanField()),
            ],
        ),
        migrations.CreateModel(
            name="Product",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("name", models.CharField(max_length=100)),
                ("subtitle", models.CharField(blank=True, default="", max_length=100)),
                ("stock", models.IntegerField(null=True)),
                (
                    "price",
                    models.DecimalField(decimal_places=2, default=Decimal("0"), max_digits=8),
                ),
                ("weight", models.FloatField(null=True)),
                ("sku", models.UUIDField(default=uuid.uuid4)),
                (
                    "status",
                    models.CharField(
                        blank=True,
                        choices=[("on sale", "On sale"), ("so", "Sold out"), ("lost", "Lost")],
                        max_length=10,
                    ),
                ),
                ("grade", models.IntegerField(choices=[(1, "Plain"), (2, "Fine")], default=1)),
                ("active", models.BooleanField(null=True)),
                ("created", models.DateTimeField(null=True)),
                ("available_on", models.DateField(null=True)),
                ("opens", models.TimeField(null=True)),
                ("warranty", models.DurationField(null=True)),
                ("attributes", models.JSONField(null=True)),
                ("counts", models.JSONField(null=True)),
                ("size", models.JSONField(null=True)),
                ("sizes", models.JSONField(null=True)),
                ("keywords", models.JSONField(null=True)),
                ("anything", models.JSONField(null=True)),
                ("picture", models.FileField(blank=True, upload_to="pictures")),
                ("payload", models.BinaryField(null=True)),
                ("nickname", models.CharField(max_length=100, null=True)),
                ("rank", models.IntegerField(null=True)),
            ],
        ),
        migrations.CreateModel(
            name="Supplier",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("name", models.CharField(max_length=100)),
            ],
        ),
        migrations.CreateModel(
            name="Tag",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("name", models.CharField(max_length=100)),
            ],
        ),
        migrations.CreateModel(
            name="Review",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("stars", models.IntegerField()),
                (
                    "product",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, to="catalog.product"
                    ),
                ),
            ],
        ),
        migrations.AddField(
            model_name="product",
            name="supplier",
            field=models.ForeignKey(
                null=True,
                on_delete=django.db.models.deletion.CASCADE,
                related_name="products",
                to="catalog.supplier",
            ),
        ),
        migrations.AddField(
            model_name="product",
            name="tags",
            field=models.ManyToManyField(to="catalog.tag"),
        ),
        migrations.CreateModel(
            name="Payment",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("card", models.CharField(blank=True, max_length=30)),
                ("voucher", models.CharField(max_length=30, null=True)),
                (
                    "supplier",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.CASCADE,
                        to="catalog.supplier",
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="Note",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("text", models.TextField()),
                ("object_id", models.PositiveIntegerField()),
                (
                    "content_type",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, to="contenttypes.contenttype"
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="Manual",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("title", models.CharField(max_length=100)),
                (
                    "product",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.CASCADE, to="catalog.product"
                    ),
                ),
            ],
        ),
    ]
