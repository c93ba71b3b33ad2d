"""The Django application."""

from django.apps import AppConfig
from django.core.checks import register


class DjangoGrpcConfig(AppConfig):
    """`INSTALLED_APPS` entry ``django_grpc``; brings the ``grpcserver`` command and the checks."""

    name = "django_grpc"
    verbose_name = "Django gRPC server"

    def ready(self) -> None:
        """Register the checks of ``settings.GRPCSERVER``."""
        from django_grpc.checks import check_configuration

        register(check_configuration)
