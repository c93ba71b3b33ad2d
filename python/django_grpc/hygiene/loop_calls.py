"""Calls on asyncio loops, and which of them use a database connection.

Their queries run on other threads, where a connection is used by many calls at once: one that is
too old is closed when the last call that uses it has ended, lest it be closed between two pages of
another call's rows.
"""

import weakref
from contextvars import ContextVar


class LoopCall:
    """A call that runs on a loop."""

    has_ended = False
    uses_database = False

    #: Made when it comes to use the database, which many a call never does. A call of a loop that
    #: nobody runs any more never ends, and is given up with its task.
    reference: "weakref.ref[LoopCall] | None" = None

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
        """Note that it has ended. Called on the loop."""
        self.has_ended = True
        self._forget_use()

    def _forget_use(self) -> None:
        self.uses_database = False
        if self.reference is not None:
            users.discard(self.reference)


#: Those that have used a connection and not ended. Added to on the threads of the queries, and
#: otherwise changed on the loop; each change is one operation of a set.
users: set[weakref.ref[LoopCall]] = set()

#: The call that the code which runs now belongs to. `sync_to_async` takes it along to its thread.
current_call: ContextVar[LoopCall | None] = ContextVar(
    "django_grpc.hygiene.current_call", default=None
)
