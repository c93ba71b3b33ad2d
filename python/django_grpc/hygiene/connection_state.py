"""What there is to know of a connection before Django's rule is asked whether to close it."""

import time
from types import MethodType
from typing import Any

from django.db.backends.base import base
from django.db.backends.base.base import BaseDatabaseWrapper

from django_grpc.hygiene.stock import is_stock

#: Django's own rule; None if somebody has put another in its place.
stock_rule: Any = BaseDatabaseWrapper.close_if_unusable_or_obsolete
if not is_stock(stock_rule, base):
    stock_rule = None


def is_suspect(connection: BaseDatabaseWrapper) -> bool:
    """Whether the rule of an open connection has to be asked, whatever its age.

    Always for a backend that has a rule of its own.
    """
    rule: Any = connection.close_if_unusable_or_obsolete
    return (
        connection.errors_occurred
        or is_manual(connection)
        or stock_rule is None
        or type(rule) is not MethodType  # what a tool has put around it tells of its function, too
        or rule.__func__ is not stock_rule
    )


def is_obsolete(connection: BaseDatabaseWrapper) -> bool:
    """Whether the age of an open connection ends it."""
    return connection.close_at is not None and time.monotonic() >= connection.close_at


def is_manual(connection: BaseDatabaseWrapper) -> bool:
    """Whether its transactions are other than the settings say, as by `set_autocommit`."""
    return bool(connection.autocommit != connection.settings_dict["AUTOCOMMIT"])


def has_transaction(connection: BaseDatabaseWrapper) -> bool:
    """Whether somebody has begun a transaction, as by `atomic` or `set_autocommit`."""
    return connection.in_atomic_block or is_manual(connection)


def is_dead(connection: BaseDatabaseWrapper) -> bool:
    """Whether the driver knows that a connection has ended; not each tells."""
    driver: Any = connection.connection
    return driver is None or bool(getattr(driver, "closed", False))
