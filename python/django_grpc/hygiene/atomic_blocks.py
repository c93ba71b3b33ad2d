"""Whose the blocks of `transaction.atomic` are that are open on a connection, or were lost."""

import math
import time
import weakref
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple, SupportsIndex

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.transaction import TransactionManagementError

from django_grpc.hygiene.loop_calls import LoopCall, Owner, current_call, is_of, owner_of

# The seconds for which the queries of a call that has ended are refused. Code that is in a block
# comes to its end sooner, as each of its queries fails.
_REFUSED_FOR = 30.0


class _Lost(NamedTuple):
    owner: weakref.ref[LoopCall]
    at: float


class LostBlocks:
    """The transactions of a connection that were ended from under who was in them.

    Until they are left nothing is asked of the connection for those who were: it would be kept,
    and what came before it is lost. So does Django with a block in which a query has failed. But
    what is asked amid a block of others' goes into that, as everybody's does: Django would take the
    refusal of a write for a failure of theirs, and roll them back in silence.
    """

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        self._connection = weakref.ref(connection)
        # One for each block, and for each transaction without any, as by `set_autocommit`.
        self._lost: list[_Lost] = []
        #: Whether what is committed or rolled back next is a transaction that was not lost.
        self.ends_whole = False

    def add(self, owners: Iterable[Owner]) -> None:
        """Take those that are lost now; those that nobody can leave any more are forgotten."""
        now = time.monotonic()
        self._lost = [it for it in self._lost if it.owner() is not None]
        self._lost += [_Lost(it, now) for it in owners if it is not None and it() is not None]

    def refuse(self, call: LoopCall | None, *, is_commit: bool = False) -> None:
        """Refuse what is asked for a call that is in one of them.

        Code that goes on once its call has ended may be in none: a scheduler that the call has
        started. Its queries are not refused for ever.

        Raises:
            TransactionManagementError: It is.
        """
        if call is None or not self._lost:
            return
        connection = self._connection()
        if connection is None or connection.in_atomic_block:
            return
        since = -math.inf
        if call.has_ended and not is_commit:
            since = time.monotonic() - _REFUSED_FOR
        if any(it.owner() is call and it.at >= since for it in self._lost):
            raise _lost()

    def leave(self, call: LoopCall | None) -> bool:
        """Note that a call leaves one of those that it is in, and return whether it was in any."""
        for place, lost in enumerate(self._lost):
            if call is not None and lost.owner() is call:
                del self._lost[place]
                return True
        return False


class AtomicBlocks(list[Any]):
    """A connection's `atomic_blocks`, which Django appends to and pops from.

    The blocks of calls that share a connection may end in another order than they have begun:
    Django does not mind, but takes the last one off its list whichever ends.

    Args:
        blocks: Those that are open already, which are taken for those of no call.

    Attributes:
        lost: Those of the connection that were.
        owners: Who has begun those that are open.
    """

    def __init__(self, lost: LostBlocks, blocks: Collection[Any] = ()) -> None:
        super().__init__(blocks)
        self.lost = lost
        self.owners: list[Owner] = [None] * len(blocks)

    def __reduce__(self) -> Any:
        """Be the list of blocks in what is pickled."""
        return list, ([*self],)

    def append(self, block: Any, /) -> None:
        """Note a block that begins."""
        super().append(block)
        self.owners.append(owner_of(current_call.get()))

    def pop(self, index: SupportsIndex = -1, /) -> Any:
        """Note that the last one ends of the call that this runs for.

        Raises:
            TransactionManagementError: It was rolled back, and what is open is others'.
        """
        call = current_call.get()
        for place in reversed(range(len(self.owners))):
            if is_of(self.owners[place], call):
                del self.owners[place]
                self.lost.ends_whole = not self.owners
                break
        else:
            if self.lost.leave(call):
                raise _lost()
            del self.owners[-1:]
        return super().pop(index)


def _lost() -> TransactionManagementError:
    return TransactionManagementError(
        "The transaction has been rolled back: a call that had begun it, or what it is inside of, "
        "has ended, and no task of its event loop goes on with it. Leave the block."
    )
