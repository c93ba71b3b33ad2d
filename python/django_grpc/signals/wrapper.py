"""`SignalWrapper` where django-grpc has it."""

from django_grpc.wrapping.wrapper import SignalWrapper

__all__ = ["SignalWrapper"]
