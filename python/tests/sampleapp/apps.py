from django.apps import AppConfig


class SampleAppConfig(AppConfig):
    name = "sampleapp"
    default_auto_field = "django.db.models.BigAutoField"
