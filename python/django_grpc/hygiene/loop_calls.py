"""Calls on asyncio loops, and which of them use a database connection.

Their queries run on other threads, where a connection is used by many calls at once: one that is
too old is closed when the last call that uses it has ended, lest it be closed between two pages of
another call's rows.
"""

import asyncio
import contextlib
import gc
import weakref
from contextvars import Context, ContextVar


class LoopCall:
    """A call that runs on a loop."""

    has_ended = False
    uses_database = False

    #: Made when it comes to use the database, which many a call never does. A call of a loop that
    #: nobody runs any more never ends, and is given up with its task.
    reference: "weakref.ref[LoopCall] | None" = None

    #: The loop that it has ended on.
    loop: asyncio.AbstractEventLoop | None = None

    # Its own task, where it has used the database.
    _own_task: "weakref.ref[asyncio.Task[object]] | None" = None

    # A task that goes on, found when somebody asked.
    _task: "weakref.ref[asyncio.Task[object]] | None" = None

    def use_database(self) -> None:
        """Note that it uses a connection. Called on the thread of the query."""
        if not self.uses_database and not self.has_ended:
            self.uses_database = True
            if self.reference is None:
                self.reference = weakref.ref(self, users.discard)
            users.add(self.reference)
        if self.has_ended:  # perhaps just now
            self._forget_use()

    def end(self) -> None:
        """Note that it has ended. Called on the loop, in its task."""
        with contextlib.suppress(RuntimeError):
            self.loop = asyncio.get_running_loop()
            if self.uses_database and (task := asyncio.current_task(self.loop)) is not None:
                self._own_task = weakref.ref(task)
        self.has_ended = True
        self._forget_use()

    def goes_on(self) -> bool:
        """Whether it has not ended, or a task that it has started.

        To find one takes a look at all tasks of the loop, and again when that one has ended.
        """
        if not self.has_ended:
            return True
        if self.loop is None:
            return False
        task = None if self._task is None else self._task()
        if task is not None and not task.done():
            return True
        try:
            tasks = asyncio.all_tasks(self.loop)
        except RuntimeError:  # so many come and go meanwhile
            return True
        if self._own_task is not None:
            tasks.discard(self._own_task())
        for task in tasks:
            if any(it.get(current_call) is self for it in _contexts_of(task)):
                self._task = weakref.ref(task)
                return True
        return False

    def _forget_use(self) -> None:
        self.uses_database = False
        if self.reference is not None:
            users.discard(self.reference)


#: Whose something is; None where it belongs to no call.
Owner = weakref.ref[LoopCall] | None


def owner_of(call: LoopCall | None) -> Owner:
    """Return what says that something is a call's, and does not keep that."""
    return None if call is None else weakref.ref(call)


def is_of(owner: Owner, call: LoopCall | None) -> bool:
    """Whether something is a call's, or of none."""
    return owner is None if call is None else owner is not None and owner() is call


def _contexts_of(task: "asyncio.Task[object]") -> list[Context]:
    """Return the context that a task runs in."""
    get_context = getattr(task, "get_context", None)
    if get_context is not None:  # from Python 3.12 on
        return [get_context()]
    return [it for it in gc.get_referents(task) if isinstance(it, Context)]


#: Those that have used a connection and not ended. Added to on the threads of the queries, and
#: otherwise changed on the loop; each change is one operation of a set.
users: set[weakref.ref[LoopCall]] = set()

#: The call that the code which runs now belongs to. `sync_to_async` takes it along to its thread.
current_call: ContextVar[LoopCall | None] = ContextVar(
    "django_grpc.hygiene.current_call", default=None
)
