"""Whose the blocks of `transaction.atomic` are that are open on a connection, or were lost."""

from collections.abc import Collection, Iterable
from typing import Any, SupportsIndex

from django.db.transaction import TransactionManagementError

from django_grpc.hygiene.loop_calls import LoopCall, Owner, current_call, is_of, owner_of


class LostBlocks:
    """The transactions of a connection that were ended from under who was in them.

    Until they are left nothing is asked of the connection for those who were: it would be kept,
    and what came before it is lost. So does Django with a block in which a query has failed.
    """

    def __init__(self) -> None:
        # One for each block, and for each transaction without any, as by `set_autocommit`.
        self._owners: list[Owner] = []

    def add(self, owners: Iterable[Owner]) -> None:
        """Take those that are lost now; those that nobody can leave any more are forgotten."""
        self._owners = [
            it for it in (*self._owners, *owners) if it is not None and it() is not None
        ]

    def refuse(self, call: LoopCall | None) -> None:
        """Refuse what is asked for a call that is in one of them.

        Raises:
            TransactionManagementError: It is.
        """
        if call is not None and any(is_of(it, call) for it in self._owners):
            raise _lost()

    def leave(self, call: LoopCall | None) -> bool:
        """Note that a call leaves one of those that it is in, and return whether it was in any."""
        for place, owner in enumerate(self._owners):
            if call is not None and is_of(owner, call):
                del self._owners[place]
                return True
        return False

    def leave_by_commit(self, call: LoopCall | None) -> None:
        """Do what `leave` does, for who believes that all was kept.

        Raises:
            TransactionManagementError: It was in one.
        """
        if self.leave(call):
            raise _lost()


class AtomicBlocks(list[Any]):
    """A connection's `atomic_blocks`, which Django appends to and pops from.

    The blocks of calls that share a connection may end in another order than they have begun:
    Django does not mind, but takes the last one off its list whichever ends.

    Args:
        lost: The connection's.
        blocks: Those that are open already, which are taken for those of no call.

    Attributes:
        owners: Who has begun those that are open.
    """

    def __init__(self, lost: LostBlocks, blocks: Collection[Any] = ()) -> None:
        super().__init__(blocks)
        self._lost = lost
        self.owners: list[Owner] = [None] * len(blocks)

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
                break
        else:
            self._lost.leave_by_commit(call)
            del self.owners[-1:]
        return super().pop(index)


def _lost() -> TransactionManagementError:
    return TransactionManagementError(
        "The transaction has been rolled back: a call that had begun it, or what it is inside of, "
        "has ended, and no task of its event loop goes on with it. Leave the block."
    )
