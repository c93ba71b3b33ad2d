"""SQLite, where rows that were read in part keep all others from writing."""

import asyncio
import contextlib
import gc
import sqlite3
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from asgiref.sync import SyncToAsync, sync_to_async
from django.db import connection
from harness import leave_half_read

from django_grpc import hygiene

pytestmark = pytest.mark.usefixtures("databases_allowed")


def open_cursor():
    cursor = connection.chunked_cursor()
    cursor.execute("SELECT 1 UNION SELECT 2")
    return cursor


def is_open(cursor):
    try:
        cursor.fetchone()
    except sqlite3.ProgrammingError:
        return False
    return True


def closed_elsewhere(home):
    cursor = home.submit(open_cursor).result()
    cursor.close()
    return cursor.cursor


def collected_elsewhere(home):
    cursor = home.submit(leave_half_read).result()
    gc.collect()
    return cursor


def collected_at_home(home):
    cursor = home.submit(leave_half_read).result()
    home.submit(gc.collect).result()
    return cursor


@pytest.mark.parametrize("leave", [closed_elsewhere, collected_elsewhere, collected_at_home])
def test_what_was_read_in_part_is_closed_at_once(leave):
    """As Django alone does it, and not when its thread is used again, which may be never."""
    with ThreadPoolExecutor(1) as home:
        home.submit(hygiene.CALL_HYGIENE.enter).result()
        cursor = leave(home)
        assert not home.submit(is_open, cursor).result()
        home.submit(hygiene.CALL_HYGIENE.leave).result()
        home.submit(lambda: connection.connection.close()).result()  # it is in memory


def test_what_a_call_on_a_loop_leaves_is_closed_while_the_thread_is_busy():
    async def rows():
        with contextlib.closing(await sync_to_async(open_cursor)()) as cursor:
            yield cursor.cursor

    async def call():
        hygiene.CALL_HYGIENE.begin()
        async with contextlib.aclosing(rows()) as read:
            cursor = await anext(read)
            # Another call's, which has the thread for as long as it likes.
            busy = SyncToAsync.single_thread_executor.submit(go_on.result)
        was_open = is_open(cursor)
        go_on.set_result(None)
        busy.result()
        hygiene.CALL_HYGIENE.end()
        return was_open

    go_on = Future()
    assert not asyncio.run(call())
