"""The database connections that a thread holds, and when one of them is closed."""

import contextlib
import itertools
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Collection
from types import MethodType
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created

from django_grpc.hygiene import cursors
from django_grpc.hygiene.atomic_blocks import AtomicBlocks
from django_grpc.hygiene.connection_record import (
    ConnectionRecord,
    real,
    record_for,
    record_of,
    thread_of,
)
from django_grpc.hygiene.connection_state import (
    has_transaction,
    is_dead,
    is_manual,
    is_obsolete,
    is_suspect,
    stock_rule,
)
from django_grpc.hygiene.hooks import hook, watch_class
from django_grpc.hygiene.loop_calls import LoopCall, Owner, is_of, owner_of, users
from django_grpc.hygiene.stored_connections import StoredConnections
from django_grpc.logs import GuardedLogger

logger = GuardedLogger("django_grpc")

# The number of the last connection, of any thread, that turned out to be dead, and of the last one
# to each database. One that drops a connection mostly drops all: the others are asked before they
# are used again, so that a restart does not cost a failed call for each of them. Calls that do not
# use that database do not wait for what it says.
_deaths = 0
_deaths_by_alias: dict[str, int] = {}
_numbers = itertools.count(1)

#: Connections of threads that have ended, from which somebody still reads. Seen to with those of
#: whichever thread is next.
orphans: deque[tuple[BaseDatabaseWrapper, cursors.Home]] = deque()


class HeldConnections:
    """The connections that one thread holds, for others to look at too."""

    #: Whether the thread is the one that `sync_to_async` runs thread-sensitive code on.
    is_of_sync_to_async = False

    def __init__(self) -> None:
        """Be those of the thread that this is called on."""
        #: Where Django keeps them.
        self.stored = StoredConnections()
        #: The last death when the connections were looked at last, and the last one to a database
        #: when that to it has opened or was doubted.
        self.deaths = _deaths
        self.deaths_by_alias: dict[str, int] = {}
        #: The databases whose connections are asked before they are used next.
        self.doubted: set[str] = set()
        #: On a thread that a servicer has started: the calls that have used them, and the last.
        self.calls: weakref.WeakSet[LoopCall] = weakref.WeakSet()
        self.last_call: LoopCall | None = None
        #: The databases that one has opened to, which did not die since.
        self.opened: set[str] = set()
        #: On such a thread: whether code uses them too that belongs to no call, or goes on once its
        #: call has ended. Nobody tells of its end: what it uses is closed for no age.
        self.has_strangers = False
        #: For cursors of the connections that other threads come to close.
        self.home = cursors.Home()

    @property
    def connections(self) -> Collection[Any]:
        """What Django keeps as the thread's connections, with what stands in the place of one."""
        return self.stored.all()

    @property
    def own(self) -> list[BaseDatabaseWrapper]:
        """Those that are this thread's to look after."""
        return [it for it in self.connections if self.is_own(it)]

    def is_own(self, connection: Any) -> bool:
        """Whether a connection is this thread's to look after.

        One that another thread has lent (`inc_thread_sharing`) is that one's: it may carry the
        transaction of a test. What has nothing of the kind is none, but stands in the place of one.
        """
        if not hasattr(connection, "connection"):
            return False
        if not getattr(connection, "allow_thread_sharing", True):
            return True
        return thread_of(connection) == self.home.thread

    def is_doubtful(self) -> bool:
        """Whether another connection has died since these were looked at."""
        return self.deaths != _deaths

    def doubt(self) -> None:
        """Have those asked before their next use where others to the same database have died.

        As Django does with ``CONN_HEALTH_CHECKS``.
        """
        self.deaths = _deaths
        for connection in self.own:
            alias = connection.alias
            deaths = _deaths_by_alias.get(alias, 0)
            if deaths == self.deaths_by_alias.get(alias, 0):
                continue
            self.deaths_by_alias[alias] = deaths
            if connection.connection is not None and not has_transaction(connection):
                _set_health_check(connection, is_enabled=True)
                self.doubted.add(alias)

    def believe(self) -> None:
        """Have those that were asked not asked again."""
        for connection in self.own:
            if connection.alias in self.doubted and connection.health_check_done:  # type: ignore[attr-defined]
                _set_health_check(
                    connection, is_enabled=connection.settings_dict["CONN_HEALTH_CHECKS"]
                )
                self.doubted.discard(connection.alias)

    def note_opening(self, alias: str) -> None:
        """Note that a connection is new."""
        self.opened.add(alias)
        self.doubted.discard(alias)
        self.deaths_by_alias[alias] = _deaths_by_alias.get(alias, 0)

    def are_in_use(self) -> bool:
        """Whether somebody may have something to go on with, as rows that are read in pieces."""
        if thread.is_calls:
            return False
        if self.is_of_sync_to_async:
            return bool(users)
        return self.has_strangers or any(it.uses_database for it in self.calls)

    def note_owner(self, record: ConnectionRecord, call: LoopCall | None) -> None:
        """Note who is about to use a connection, and may begin a transaction."""
        if (call is None or call.has_ended) and not self.is_of_sync_to_async:
            self.has_strangers = True
        connection = record.connection()
        if connection is not None and not has_transaction(connection):
            record.owner = owner_of(call)

    def is_in_hands(self, connection: BaseDatabaseWrapper) -> bool:
        """Whether an open transaction is somebody's that may go on with it.

        Of a call that goes on, or of code that belongs to none, as long as the database knows of
        it. On a thread that calls run on, who looks is nobody's call any more.
        """
        if thread.is_calls or not self.home.is_tended:
            return False
        return any(_goes_on(it, connection) for it in _owners_of(connection))

    def is_left_to(self, connection: BaseDatabaseWrapper, call: LoopCall | None) -> bool:
        """Whether a call is inside of a block that others have begun who are gone.

        They come never to its end, nor does what is inside of it.
        """
        if not connection.in_atomic_block:
            return False
        others = [it for it in _owners_of(connection) if not is_of(it, call)]
        return not (
            self.home.is_tended and (not others or any(_goes_on(it, connection) for it in others))
        )

    def close(self) -> None:
        """Close them, if the thread looks after them, as it ends.

        Otherwise they would be dropped as they are, which takes one from a pool for good. Those
        that another thread reads on from are closed later. Where another thread is told, this one
        has not ended: the process is a fork.
        """
        if not self.home.is_tended or threading.get_ident() != self.home.thread:
            return
        for connection in self.own:
            if connection.connection is None or connection.allow_thread_sharing:
                continue
            self.home.close_left()
            if self.home.has_open(real(connection)):
                orphans.append((connection, self.home))
            else:
                with contextlib.suppress(Exception):  # it may have died
                    connection.close()


def _goes_on(owner: Owner, connection: BaseDatabaseWrapper) -> bool:
    if owner is None:
        return not is_dead(connection)
    call = owner()
    return call is not None and (call.uses_database or call.goes_on())


def _owners_of(connection: BaseDatabaseWrapper) -> list[Owner]:
    """Return who has begun the open transaction, or is inside of it by a block of its own."""
    blocks = connection.atomic_blocks
    owners = [*blocks.owners] if isinstance(blocks, AtomicBlocks) else []
    if not owners or not connection.commit_on_exit:  # or set_autocommit was before
        record = record_of(connection)
        owners.append(None if record is None else record.owner)
    return owners


class _Life:
    """Goes with its thread."""


class _Thread(threading.local):
    """The database connections that the stock receivers would visit on this thread."""

    #: Whether calls run on the thread from their first line to their last, so that their ends are
    #: the times to look after its connections. Nobody but the call that asks uses them then.
    is_calls = False

    #: Whether `CallHygiene` is around what runs. On a thread of calls the signals are else the
    #: first and the last of a call.
    is_entered = False

    def __init__(self) -> None:
        self.held = HeldConnections()
        self.life = _Life()
        weakref.finalize(self.life, self.held.close).atexit = False
        for connection in self.held.own:
            if connection.connection is not None:  # it has opened before anybody listened
                self.held.note_opening(connection.alias)


thread = _Thread()


def remember_opening(connection: BaseDatabaseWrapper, **kwargs: Any) -> None:
    """Note a connection that has opened on this thread; one of a kind that is new is watched."""
    watch_class(type(connection))
    thread.held.stored.check()
    if any(real(it) is connection for it in thread.held.connections):  # and no copy
        thread.held.note_opening(connection.alias)


def _connect(connection: BaseDatabaseWrapper, proceed: Callable[[], Any]) -> Any:
    """Note that the one before has died, which Django forgets, and do what a backend does.

    Where a rollback fails, `atomic` closes it and connects again at once.
    """
    record_for(connection, thread.held.home)
    if connection.errors_occurred:
        _note_death(connection)
    return proceed()


def _chunked_cursor(connection: BaseDatabaseWrapper, proceed: Callable[[], Any]) -> Any:
    """Have cursors that a thread opens of its connection closed on that thread only."""
    record = record_for(connection, thread.held.home)
    if record is None or connection.allow_thread_sharing:
        return proceed()
    return record.home.open(connection, proceed)


hook("connect", _connect)
hook("chunked_cursor", _chunked_cursor)
connection_created.connect(remember_opening, dispatch_uid="django_grpc.hygiene.held_connections")


def reset_queries() -> None:
    """Do what ``django.db.reset_queries`` does, unless other calls use the connections."""
    held = thread.held
    if held.home.is_tended and held.are_in_use():
        return
    for connection in held.stored.here():
        log = getattr(connection, "queries_log", None)
        if log and held.is_own(connection):
            log.clear()


def close_old_connections(*, is_used: bool | None = None) -> None:
    """Do what ``django.db.close_old_connections`` does, and doubt those that may have died too.

    Nothing inside of what `CallHygiene` is around: that sees to the connections before and after,
    and what is around a method may have something to go on with, as a transaction or a lock.

    Args:
        is_used: Whether other calls use the connections, which are not ended by their age then.
            Default: what is known of it.
    """
    if thread.is_entered:
        return
    if orphans:
        _close_orphans()
    held = thread.held
    if held.home.left:
        held.home.close_left()
    connections: Collection[Any] = held.stored.here()
    if not connections:
        return
    if is_used is None:
        is_used = held.home.is_tended and held.are_in_use()
    if held.doubted:
        held.believe()
    if held.is_doubtful():
        held.doubt()
    try:
        for connection in connections:
            # The conditions of close_if_unusable_or_obsolete(), asked beforehand because the method
            # costs three times as much; those of `is_suspect` and `is_obsolete`, in line because
            # each call has this done to it twice.
            if connection.errors_occurred or connection.in_atomic_block:
                break
            if connection.connection is None:
                continue
            rule = connection.close_if_unusable_or_obsolete
            if (
                connection.autocommit != connection.settings_dict["AUTOCOMMIT"]
                or (
                    connection.close_at is not None
                    and not is_used
                    and time.monotonic() >= connection.close_at
                )
                or rule.__self__ is not connection  # a proxy: what is set there changes nothing
                or type(rule) is not MethodType
                or rule.__func__ is not stock_rule
            ):
                break
            connection.health_check_done = False
        else:
            return
    except AttributeError:  # of one of another make, or of what is no connection at all
        pass
    for connection in held.connections:  # what is done to one may change which they are
        _apply_rule(connection, is_used=is_used)


def _close_orphans() -> None:
    """Close those that nobody reads from any more."""
    for _ in range(len(orphans)):
        try:
            connection, home = orphans.popleft()
        except IndexError:  # another thread has been here
            return
        if home.has_open(connection):
            orphans.append((connection, home))
            continue
        connection.inc_thread_sharing()  # nobody else has it
        with contextlib.suppress(Exception):  # it may have died
            home.close_left()
            connection.close()


def _apply_rule(connection: BaseDatabaseWrapper, *, is_used: bool) -> None:
    """Have Django's rule decide about a connection, unless only its age would end it."""
    held, its_own = thread.held, real(connection)
    if not isinstance(its_own, BaseDatabaseWrapper):  # which has a rule of its own, if any
        rule = getattr(connection, "close_if_unusable_or_obsolete", None)
        if callable(rule):
            rule()
        return
    if not held.is_own(connection):
        return
    if connection.connection is None and not connection.in_atomic_block:
        if connection.errors_occurred:
            _note_death(connection)
        return
    if has_transaction(connection):
        if held.is_in_hands(connection):
            return
        if held.home.is_tended:
            end_transaction(its_own)
            return
    if held.is_of_sync_to_async and held.home.has_open(its_own):
        is_used = True  # rows may be read on by a task that outlives its call, or whoever has them
    had_errors = connection.errors_occurred
    if not is_suspect(connection) and (is_used or not is_obsolete(connection)):
        its_own.health_check_done = False  # type: ignore[attr-defined] # not in its stubs
        return
    age_ends_at = connection.close_at
    if is_used:
        its_own.close_at = None  # for Django's rule, which asks for both
    if is_manual(connection) or is_obsolete(connection):
        held.home.close_all(its_own)
    connection.close_if_unusable_or_obsolete()
    its_own.close_at = age_ends_at  # of one that has been closed nobody asks
    if connection.connection is None:
        if had_errors:
            _note_death(connection)  # or it was too old, too: then others are asked for nothing
        held.opened.discard(connection.alias)


def _note_death(connection: BaseDatabaseWrapper) -> None:
    """Have the others doubted, unless this one could not be opened, which says nothing of those."""
    global _deaths
    alias, opened = connection.alias, thread.held.opened
    if alias in opened:
        opened.discard(alias)
        number = next(_numbers)
        _deaths_by_alias[alias] = number
        _deaths = number  # last: whoever sees it looks whose it is


def _set_health_check(connection: Any, *, is_enabled: bool) -> None:  # not in the stubs
    connection = real(connection)
    connection.health_check_enabled = is_enabled
    connection.health_check_done = False


def end_transaction(connection: BaseDatabaseWrapper) -> None:
    """Roll back what a call that has ended left open, and close the connection, which is no proxy.

    Closed alone, it would refuse all that comes until the block is left, which nobody does.
    """
    if connection.in_atomic_block:  # else Django, too, ends it without a word
        logger.error(
            "A call has ended inside of transaction.atomic() on the database %r: the transaction "
            "is rolled back, and the connection closed.",
            connection.alias,
        )
    held = thread.held
    record = record_of(connection)
    if record is not None:
        record.lost.add(_owners_of(connection))
    is_closed = connection.closed_in_transaction
    connection.in_atomic_block = connection.closed_in_transaction = False
    # As `connect` does, but `atomic(durable=True)` looks before it connects.
    connection.savepoint_ids = []
    is_watched = record is not None and isinstance(connection.atomic_blocks, AtomicBlocks)
    connection.atomic_blocks = AtomicBlocks(record.lost) if record and is_watched else []
    connection.needs_rollback = False
    if is_closed:
        connection.connection = None  # as Django does it when the block is left
    else:
        held.home.close_all(connection)
        connection.close()
        if connection.connection is not None:  # in memory, which Django leaves open
            if record is not None:
                record.lost.ends_whole = True
            connection.rollback()
            connection.set_autocommit(connection.settings_dict["AUTOCOMMIT"])
