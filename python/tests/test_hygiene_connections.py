"""Whose a transaction is, and what becomes of connections with the threads that hold them."""

import asyncio
import contextvars
import functools
import gc
import sqlite3
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from asgiref.sync import SyncToAsync, ThreadSensitiveContext, sync_to_async
from django.db import DatabaseError, connection, connections, transaction
from django.db.backends.sqlite3.base import DatabaseWrapper
from harness import Forwarding, leave_half_read

from django_grpc import hygiene
from django_grpc.hygiene import (
    atomic_blocks,
    connection_use,
    sync_thread,
)
from django_grpc.hygiene.atomic_blocks import AtomicBlocks, LostBlocks

PATIENCE = 20

pytestmark = pytest.mark.usefixtures("databases_allowed", "database_in_a_file", "like_a_server")


@pytest.fixture
def database_in_a_file(tmp_path, monkeypatch):
    """One whose connections can be closed, and are too old once nobody uses them."""
    monkeypatch.setitem(connections.settings["default"], "NAME", str(tmp_path / "database"))
    monkeypatch.setitem(connections.settings["default"], "CONN_MAX_AGE", 0)


@pytest.fixture(params=["sync_to_async", "own"])
def shared_thread(request):
    """A thread that calls on loops share; what is given runs on it, and its result is returned."""
    if request.param == "own":
        executor = ThreadPoolExecutor(1)
    else:
        executor = SyncToAsync.single_thread_executor

    def run(function):
        return executor.submit(function).result(PATIENCE)

    def forget():
        connection.close()
        del connections["default"]

    run(forget)
    if request.param == "sync_to_async":
        run(sync_thread._tidy)  # now it is known whose connections these are
    yield run
    run(forget)
    if request.param == "own":
        executor.shutdown()


class Call:
    """A call on a loop, as far as hygiene is concerned."""

    def __init__(self):
        self.run = contextvars.copy_context().run
        self.run(hygiene.CALL_HYGIENE.begin)

    def using(self, function):
        """What runs a function as a thread does that the call has asked to."""
        return functools.partial(self.run(contextvars.copy_context).run, function)

    def start_task(self, coroutine):
        return self.run(asyncio.get_running_loop().create_task, coroutine)

    def end(self):
        self.run(hygiene.CALL_HYGIENE.end)


def is_open():
    return connection.connection is not None


def ask():
    connection.cursor().execute("SELECT 1")


def ask_again(shared_thread, call):
    """Ask where a call may have left a transaction: on a servicer's own thread that fails once."""
    try:
        shared_thread(call.using(ask))
    except transaction.TransactionManagementError:
        shared_thread(call.using(ask))


def is_in_transaction():
    return connection.in_atomic_block or not connection.get_autocommit()


def check_that_nothing_is_open(shared_thread):
    call = Call()
    ask_again(shared_thread, call)
    assert not shared_thread(call.using(is_in_transaction))
    call.end()


def begin_by_hand():
    transaction.set_autocommit(False)
    ask()


BEGINNINGS = [
    pytest.param(lambda: transaction.atomic().__enter__(), id="atomic, before its first query"),
    pytest.param(lambda: (transaction.atomic().__enter__(), ask()), id="atomic"),
    pytest.param(begin_by_hand, id="set_autocommit"),
]


@pytest.mark.parametrize("begin", BEGINNINGS)
def test_a_transaction_of_a_connection_behind_a_proxy_ends_with_its_call(shared_thread, begin):
    def put_proxy():
        connections["default"] = Forwarding(connections["default"])

    shared_thread(put_proxy)
    call = Call()
    shared_thread(call.using(begin))
    assert shared_thread(call.using(is_in_transaction))
    call.end()
    check_that_nothing_is_open(shared_thread)


@pytest.mark.parametrize("begin", BEGINNINGS)
@pytest.mark.parametrize("asks", [True, False])
def test_a_transaction_is_left_to_the_call_that_has_begun_it(shared_thread, begin, asks):
    """Else a half of what it writes is lost, or kept though it fails."""
    one, other = Call(), Call()
    shared_thread(one.using(begin))
    if asks:
        shared_thread(other.using(ask))
    other.end()
    another = Call()
    shared_thread(another.using(ask))
    another.end()
    shared_thread(lambda: None)
    assert shared_thread(one.using(is_in_transaction))
    one.end()
    check_that_nothing_is_open(shared_thread)


@pytest.mark.parametrize("leaves", ["its own", "nothing"])
def test_blocks_of_calls_that_overlap(shared_thread, leaves):
    """The first one's end is none of the second one's, which is inside of the same transaction."""
    first, second, other = Call(), Call(), Call()
    blocks = [transaction.atomic(), transaction.atomic()]
    shared_thread(first.using(blocks[0].__enter__))
    shared_thread(second.using(blocks[1].__enter__))
    if leaves == "nothing":
        shared_thread(first.using(lambda: blocks[0].__exit__(None, None, None)))
    first.end()
    shared_thread(other.using(ask))
    assert shared_thread(second.using(is_in_transaction))
    if leaves == "nothing":
        shared_thread(second.using(lambda: blocks[1].__exit__(None, None, None)))
        assert not shared_thread(is_in_transaction)
    second.end()
    shared_thread(lambda: None)
    ask_again(shared_thread, other)
    assert not shared_thread(is_in_transaction)
    other.end()


@pytest.mark.parametrize("shared_thread", ["sync_to_async"], indirect=True)
def test_what_a_call_leaves_is_in_no_later_ones_way(shared_thread):
    """Of a durable transaction Django asks whether it is inside of another, before it connects."""
    one, other = Call(), Call()
    shared_thread(one.using(lambda: transaction.atomic().__enter__()))
    one.end()
    shared_thread(lambda: None)

    def begin():
        with transaction.atomic(durable=True):
            ask()

    shared_thread(other.using(begin))
    other.end()


@pytest.mark.parametrize("shared_thread", ["own"], indirect=True)
def test_a_call_is_told_that_its_block_is_inside_of_one_that_was_left(shared_thread):
    """As that of `bulk_create`, which makes no savepoint, and so asks nothing before it begins."""
    one, other = Call(), Call()
    shared_thread(one.using(lambda: transaction.atomic().__enter__()))
    one.end()

    def save():
        with transaction.atomic(savepoint=False):
            ask()

    with pytest.raises(transaction.TransactionManagementError, match="A call before this one"):
        shared_thread(other.using(save))
    shared_thread(other.using(save))
    assert not shared_thread(is_in_transaction)
    other.end()


def test_a_transaction_by_hand_outlasts_a_block_that_another_call_leaves_in_it(shared_thread):
    one, other = Call(), Call()
    shared_thread(one.using(begin_by_hand))
    shared_thread(other.using(lambda: transaction.atomic().__enter__()))
    other.end()
    shared_thread(lambda: None)
    assert shared_thread(one.using(is_in_transaction))
    one.end()
    check_that_nothing_is_open(shared_thread)


def test_connections_that_are_gone_are_not_kept(shared_thread):
    gone = []

    def exchange():
        gone.append(weakref.ref(connections["default"]))
        DatabaseWrapper.close(connection)
        del connections["default"]
        ask()

    def exchange_unused():
        gone.append(weakref.ref(connections["default"]))
        del connections["default"]

    call = Call()
    shared_thread(call.using(ask))
    for _ in range(3):
        shared_thread(call.using(exchange))
    for _ in range(3):
        shared_thread(call.using(exchange_unused))
    shared_thread(call.using(lambda: connections["default"]))
    gc.collect()
    assert [it() for it in gone] == [None] * 6
    call.end()


@pytest.mark.parametrize("begin", BEGINNINGS)
def test_a_transaction_that_a_call_leaves_takes_in_nobody_elses_queries(shared_thread, begin):
    one, other = Call(), Call()
    shared_thread(other.using(ask))
    shared_thread(one.using(begin))
    one.end()
    ask_again(shared_thread, other)
    assert not shared_thread(other.using(is_in_transaction))
    other.end()


def test_a_transaction_of_none_of_a_servers_calls_is_left_alone(shared_thread):
    """As of a task that a project has started beside its server."""
    at = transaction.atomic()
    call = Call()
    shared_thread(call.using(ask))
    call.end()
    shared_thread(at.__enter__)
    call = Call()
    call.end()
    shared_thread(lambda: None)
    assert shared_thread(is_in_transaction)
    shared_thread(lambda: at.__exit__(None, None, None))
    assert not shared_thread(is_in_transaction)


def test_a_thread_of_a_servicers_own_is_a_readers_also_when_it_asks_again():
    """Another call has asked there meanwhile."""
    reader, other = Call(), Call()
    with ThreadPoolExecutor(1) as own:
        own.submit(reader.using(ask)).result(PATIENCE)
        driver = own.submit(lambda: connection.connection).result()
        own.submit(other.using(ask)).result(PATIENCE)
        other.end()
        own.submit(reader.using(ask)).result(PATIENCE)
        assert own.submit(lambda: connection.connection is driver).result()
        reader.end()


def test_a_thread_of_a_servicers_own_is_also_its_projects():
    """A job of no call reads rows in pieces there, and nobody tells when it has ended."""
    with ThreadPoolExecutor(1) as own:
        own.submit(ask).result(PATIENCE)
        driver = own.submit(lambda: connection.connection).result()
        for _ in range(2):
            call = Call()
            own.submit(call.using(ask)).result(PATIENCE)
            call.end()
        assert own.submit(lambda: connection.connection is driver).result()


def test_a_thread_of_a_servicers_own_is_also_a_tasks_that_outlives_its_call():
    call, other = Call(), Call()
    late = call.using(ask)
    call.end()
    with ThreadPoolExecutor(1) as own:
        own.submit(late).result(PATIENCE)
        driver = own.submit(lambda: connection.connection).result()
        own.submit(other.using(ask)).result(PATIENCE)
        assert own.submit(lambda: connection.connection is driver).result()
        other.end()


@pytest.mark.parametrize("begin", BEGINNINGS)
def test_a_transaction_that_begins_once_its_call_has_ended_is_nobodys(shared_thread, begin):
    """As one does whose call is cancelled before its function comes to its turn."""
    call, other = Call(), Call()
    late = call.using(begin)
    call.end()
    shared_thread(late)
    shared_thread(lambda: None)
    ask_again(shared_thread, other)
    assert not shared_thread(is_in_transaction)
    other.end()


@pytest.mark.parametrize("begin", BEGINNINGS)
def test_a_transaction_of_a_task_that_outlives_its_call(shared_thread, begin, monkeypatch):
    """Else what it has written is rolled back, and the rest kept."""

    async def serve():
        call = Call()
        released = asyncio.Event()
        task = call.start_task(released.wait())
        shared_thread(call.using(begin))
        going_on = call.using(is_in_transaction)
        call.end()
        del call
        for _ in range(2):
            other = Call()
            shared_thread(other.using(ask))
            other.end()
        assert shared_thread(going_on)
        with monkeypatch.context() as patch:  # what every call does here costs no look at all tasks
            patch.delattr(asyncio, "all_tasks")
            Call().end()
            shared_thread(lambda: None)
        released.set()
        await task
        check_that_nothing_is_open(shared_thread)

    asyncio.run(serve())


@pytest.mark.parametrize("begin", BEGINNINGS)
def test_what_outlives_its_call_unseen_is_told_that_its_transaction_is_lost(shared_thread, begin):
    """As what goes on in another event loop. Else the second half of it would be kept alone."""
    call, other = Call(), Call()
    shared_thread(call.using(begin))
    going_on = call.using(ask)
    call.end()
    ask_again(shared_thread, other)
    for _ in range(2):  # who handles it would go on, and that be kept
        with pytest.raises(transaction.TransactionManagementError, match="has been rolled back"):
            shared_thread(going_on)
        shared_thread(other.using(ask))
    shared_thread(call.using(lambda: connection.rollback()))
    shared_thread(going_on)
    other.end()


def test_what_is_lost_on_one_connection_is_told_on_no_other(shared_thread):
    """Else the wrong one would be refused, and the loss told to nobody."""
    call, other = Call(), Call()
    lost, kept = transaction.atomic(), transaction.atomic()
    with ThreadPoolExecutor(1) as executor:

        def another_thread(function):
            return executor.submit(function).result(PATIENCE)

        shared_thread(call.using(lost.__enter__))
        another_thread(call.using(kept.__enter__))
        call.end()
        ask_again(shared_thread, other)
        another_thread(call.using(ask))
        another_thread(call.using(lambda: kept.__exit__(None, None, None)))
        with pytest.raises(transaction.TransactionManagementError, match="has been rolled back"):
            shared_thread(call.using(lambda: lost.__exit__(None, None, None)))
    other.end()


def test_who_is_inside_of_a_block_that_is_lost_is_refused_until_it_is_left(shared_thread):
    """Else what follows a query whose failure is handled would be kept."""
    first, second, other = Call(), Call(), Call()
    block = transaction.atomic()
    shared_thread(first.using(transaction.atomic().__enter__))
    shared_thread(second.using(block.__enter__))
    first.end()
    for _ in range(2):
        with pytest.raises(transaction.TransactionManagementError, match="rolled back"):
            shared_thread(second.using(ask))
    ask_again(shared_thread, other)
    shared_thread(second.using(lambda: block.__exit__(ValueError, ValueError(), None)))
    shared_thread(second.using(ask))
    second.end()
    other.end()


@pytest.mark.parametrize("write", ["save", "delete"])
def test_who_is_refused_breaks_no_block_of_others(shared_thread, write):
    """Where a write fails Django rolls back what is open, and says nothing at its end.

    So it is not refused as long as that is open, but its end is.
    """
    call, other = Call(), Call()
    block = transaction.atomic()

    def write_row():
        manager = transaction.mark_for_rollback_on_error("default")
        with manager if write == "save" else transaction.atomic(savepoint=False):
            save("shared")

    lost = transaction.atomic()
    shared_thread(call.using(lost.__enter__))
    call.end()
    ask_again(shared_thread, other)
    shared_thread(other.using(lambda: (block.__enter__(), save("kept"))))
    shared_thread(call.using(write_row))
    shared_thread(other.using(lambda: save("kept, too")))
    shared_thread(other.using(lambda: block.__exit__(None, None, None)))
    with pytest.raises(transaction.TransactionManagementError, match="has been rolled back"):
        shared_thread(call.using(write_row))
    with pytest.raises(transaction.TransactionManagementError, match="has been rolled back"):
        shared_thread(call.using(lambda: lost.__exit__(None, None, None)))
    assert shared_thread(other.using(saved)) == ["kept", "kept, too", "shared"]
    other.end()


def save(name):
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE IF NOT EXISTS names (name TEXT)")
        cursor.execute("INSERT INTO names VALUES (%s)", [name])


def saved():
    with connection.cursor() as cursor:
        cursor.execute("SELECT name FROM names ORDER BY name")
        return [name for (name,) in cursor.fetchall()]


def test_code_of_a_call_that_was_in_no_block_is_refused_for_a_while(shared_thread, monkeypatch):
    """As a scheduler that the call has started. The end of a block is told however late."""

    def run_job(name, error=None):
        with transaction.atomic():
            save(name)
            if error is not None:
                raise error

    call, other = Call(), Call()
    block = transaction.atomic()
    shared_thread(call.using(block.__enter__))
    call.end()
    ask_again(shared_thread, other)
    with pytest.raises(transaction.TransactionManagementError, match="has been rolled back"):
        shared_thread(call.using(ask))
    monkeypatch.setattr(atomic_blocks, "_REFUSED_FOR", -1.0)
    shared_thread(call.using(lambda: run_job("kept")))
    with pytest.raises(ValueError, match="its own"):
        shared_thread(call.using(lambda: run_job("rolled back", ValueError("its own"))))
    with pytest.raises(transaction.TransactionManagementError, match="has been rolled back"):
        shared_thread(call.using(lambda: block.__exit__(None, None, None)))
    assert shared_thread(other.using(saved)) == ["kept"]
    other.end()


def test_the_end_of_one_of_two_lost_blocks_leaves_the_other(shared_thread):
    """Django rolls back where a commit fails."""
    call, other = Call(), Call()
    outer, inner = transaction.atomic(), transaction.atomic()
    for block in (outer, inner):
        shared_thread(call.using(block.__enter__))
    call.end()
    ask_again(shared_thread, other)
    for block in (inner, outer):
        with pytest.raises(transaction.TransactionManagementError, match="has been rolled back"):
            shared_thread(call.using(ask))
        with pytest.raises(transaction.TransactionManagementError, match="has been rolled back"):
            shared_thread(call.using(functools.partial(block.__exit__, None, None, None)))
    shared_thread(call.using(ask))
    other.end()


def test_nobody_is_taken_into_a_block_of_a_call_that_has_ended(shared_thread):
    """What waits for the thread before its end is seen to, and would be lost with it."""
    first, second = Call(), Call()
    enter, ask_next = first.using(transaction.atomic().__enter__), second.using(ask)
    first.end()

    def run_both():
        enter()
        ask_next()

    with pytest.raises(transaction.TransactionManagementError, match="rolled back now"):
        shared_thread(run_both)
    shared_thread(second.using(ask))
    assert not shared_thread(second.using(is_in_transaction))
    second.end()


def test_a_copy_of_a_connection_is_held_by_nobody(shared_thread):
    def use_a_copy():
        copied = connection.copy()
        copied.cursor().execute("SELECT 1")
        return copied

    call = Call()
    copies = shared_thread(call.using(lambda: weakref.WeakSet([use_a_copy()])))
    gc.collect()
    assert len(copies) == 0
    call.end()


@pytest.mark.parametrize("asks", [True, False])
@pytest.mark.parametrize("is_beside", [True, False])
def test_the_end_of_a_block_that_was_rolled_back_is_told(shared_thread, is_beside, asks):
    """Else all would seem to be well, or the block of another call be ended in its place."""
    call, other = Call(), Call()
    block, others = transaction.atomic(), transaction.atomic()
    shared_thread(call.using(block.__enter__))
    going_on = call.using(ask)
    end = call.using(lambda: block.__exit__(None, None, None))
    call.end()
    ask_again(shared_thread, other)
    if is_beside:
        shared_thread(other.using(others.__enter__))
    if asks and is_beside:  # which it goes into, as everybody's does
        shared_thread(going_on)
    elif asks:
        with pytest.raises(transaction.TransactionManagementError, match="has been rolled back"):
            shared_thread(going_on)
    with pytest.raises(transaction.TransactionManagementError, match="has been rolled back"):
        shared_thread(end)
    assert shared_thread(other.using(lambda: connection.in_atomic_block)) is is_beside
    if is_beside:
        shared_thread(other.using(lambda: others.__exit__(None, None, None)))
    other.end()


@pytest.mark.parametrize("reader", ["a call that has ended", "nobody's"])
@pytest.mark.parametrize("shared_thread", ["sync_to_async"], indirect=True)
def test_a_reader_of_whose_end_nobody_tells_keeps_its_connection(shared_thread, reader):
    def read():
        cursor = connection.chunked_cursor()
        cursor.execute("SELECT 1 UNION SELECT 2")
        return cursor

    def serve_another():
        other = Call()
        shared_thread(other.using(ask))
        other.end()
        shared_thread(lambda: None)

    call = Call()
    serve_another()  # so that the connection is there
    cursor = shared_thread(read if reader == "nobody's" else call.using(read))
    call.end()
    serve_another()
    assert shared_thread(cursor.fetchone) == (1,)
    serve_another()
    assert shared_thread(cursor.fetchone) == (2,)
    shared_thread(cursor.close)
    serve_another()
    assert not shared_thread(is_open)


@pytest.mark.parametrize("begin", BEGINNINGS)
def test_a_transaction_of_nobodys_goes_with_its_connection(shared_thread, begin):
    """Else no call there would be served again, where nobody is left to end it."""
    call = Call()
    shared_thread(call.using(ask))
    call.end()
    shared_thread(begin)

    def die():
        connection.connection.close()
        connection.connection = SimpleNamespace(closed=True, close=lambda: None)

    shared_thread(die)
    Call().end()
    call = Call()
    ask_again(shared_thread, call)
    call.end()


def test_a_cursor_without_a_query_of_djangos_is_a_use(shared_thread):
    """As psycopg's `copy` and `stream`, which Django hands through."""
    other, reader = Call(), Call()
    shared_thread(other.using(ask))
    shared_thread(reader.using(lambda: connection.cursor()))
    other.end()
    shared_thread(lambda: None)
    assert shared_thread(is_open)
    reader.end()


def test_what_is_read_ends_before_its_connection_does(shared_thread):
    """With a pool the connection would be another thread's, and the rows read on amid its work."""
    reader, other = Call(), Call()
    shared_thread(reader.using(ask))
    cursor = shared_thread(reader.using(leave_half_read))
    shared_thread(other.using(lambda: transaction.set_autocommit(False)))
    closings = []

    def is_read_on():
        try:
            return cursor.fetchone() is not None
        except sqlite3.ProgrammingError:
            return False

    def watch():
        connection.close = lambda: closings.append(is_read_on())

    shared_thread(watch)
    other.end()
    third = Call()
    shared_thread(third.using(ask))
    assert closings == [False]
    shared_thread(lambda: delattr(connection, "close"))
    third.end()
    reader.end()


def test_a_transaction_that_has_lost_its_connection_ends_with_its_call():
    """One that is closed inside of it, with a pool: Django does not wait for the end of it then."""

    def work():
        hygiene.CALL_HYGIENE.enter()
        transaction.atomic().__enter__()
        connection.close()
        connection.connection = None
        hygiene.CALL_HYGIENE.leave()
        ask()
        return is_in_transaction()

    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(work).result(PATIENCE) is False


def test_a_connection_that_fails_as_it_opens_is_closed_with_its_call(monkeypatch):
    """Nobody is told that it has opened, as where a receiver of the project's fails amid that."""

    def fail(self):
        raise DatabaseError

    def work():
        hygiene.CALL_HYGIENE.enter()
        with monkeypatch.context() as patch:
            patch.setattr(DatabaseWrapper, "init_connection_state", fail)
            with pytest.raises(DatabaseError):
                ask()
        assert is_open()
        hygiene.CALL_HYGIENE.leave()
        return is_open()

    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(work).result(PATIENCE) is False


def test_a_dead_connection_from_before_the_calls_is_found(monkeypatch):
    """As one that an executor's initializer has opened."""
    monkeypatch.setitem(connections.settings["default"], "CONN_MAX_AGE", None)
    monkeypatch.setattr(DatabaseWrapper, "is_usable", lambda self: False)
    with ThreadPoolExecutor(1, initializer=ask) as own:
        driver = own.submit(lambda: connection.connection).result()
        first, second = Call(), Call()
        own.submit(first.using(ask)).result(PATIENCE)
        assert own.submit(lambda: connection.connection is driver).result()
        own.submit(lambda: setattr(connection, "errors_occurred", True)).result()
        own.submit(second.using(ask)).result(PATIENCE)
        assert own.submit(lambda: connection.connection is not driver).result()
        first.end()
        second.end()


LATE = """
import django
from django.conf import settings

settings.configure(
    INSTALLED_APPS=["django_grpc"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
)
django.setup()

from django.db import connection

connection.ensure_connection()
import django_grpc.signals
from django_grpc.hygiene.loop_calls import LoopCall, current_call

call = LoopCall()
current_call.set(call)
connection.cursor()
assert call.uses_database
"""


def test_signals_that_are_imported_beside_an_open_connection_watch_it():
    command = [sys.executable, "-c", LATE]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr


def drivers_state(driver):
    try:
        driver.execute("SELECT 1")
    except sqlite3.ProgrammingError:
        return "closed"
    return "open"


@pytest.mark.parametrize("user", ["a call", "nobody's"])
def test_a_thread_that_ends_closes_what_calls_have_used(user):
    """It would be dropped as it is, which a pool never gets back."""

    def use():
        ask()
        return connection.connection

    call = Call()
    with ThreadPoolExecutor(1) as own:
        driver = own.submit(call.using(use) if user == "a call" else use).result(PATIENCE)
        assert drivers_state(driver) == "open"
    assert drivers_state(driver) == ("closed" if user == "a call" else "open")
    call.end()


def test_a_thread_that_ends_leaves_rows_to_whoever_reads_them():
    """As of a queryset's iterator that is begun in `asyncio.to_thread` and read on elsewhere."""
    call = Call()

    def begin():
        ask()
        cursor = connection.chunked_cursor()
        cursor.execute("SELECT 1 UNION SELECT 2")
        return cursor

    with ThreadPoolExecutor(1) as own:
        cursor = own.submit(call.using(begin)).result(PATIENCE)
    assert cursor.cursor.fetchall() == [(1,), (2,)]
    driver = cursor.cursor.connection
    Call().end()
    SyncToAsync.single_thread_executor.submit(lambda: None).result(PATIENCE)
    assert drivers_state(driver) == "open"
    cursor.close()
    Call().end()
    SyncToAsync.single_thread_executor.submit(lambda: None).result(PATIENCE)
    assert drivers_state(driver) == "closed"
    call.end()


def test_the_first_cursor_of_a_thread_is_closed_at_home_too():
    """On the event loop psycopg waits for ever, where the thread ends and closes the connection."""
    call = Call()

    def begin():
        cursor = connection.chunked_cursor()
        cursor.execute("SELECT 1 UNION SELECT 2")
        return cursor

    with ThreadPoolExecutor(1) as own:
        cursor = own.submit(call.using(begin)).result(PATIENCE)
        cursor.close()
        assert own.submit(cursor.cursor.fetchone).result(PATIENCE) == (1,)
    call.end()


def test_a_thread_of_a_calls_own_keeps_none_for_others():
    """Of asgiref's ThreadSensitiveContext: whatever other calls use is on other threads."""
    other = Call()
    other.run(connection_use.note_use)

    async def serve():
        hygiene.CALL_HYGIENE.begin()
        async with ThreadSensitiveContext():
            await sync_to_async(ask)()
            return await sync_to_async(lambda: connection.connection)()

    assert drivers_state(asyncio.run(serve())) == "closed"
    other.end()


def test_blocks_of_code_of_no_call_are_not_those_of_a_call_that_is_gone():
    blocks = AtomicBlocks(LostBlocks(connections["default"]), ["from before"])
    call = Call()
    call.run(blocks.append, "of a call that is gone")
    del call
    gc.collect()
    blocks.append("of none")
    assert [blocks.pop(), blocks.pop()] == ["of none", "of a call that is gone"]
    (owner,) = blocks.owners
    assert owner is not None
    assert owner() is None
    blocks.pop()
    assert blocks == blocks.owners == []
