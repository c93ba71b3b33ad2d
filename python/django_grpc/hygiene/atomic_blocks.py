"""Whose the blocks of `transaction.atomic` are that are open on a connection."""

from collections.abc import Collection
from typing import Any, SupportsIndex

from django.db.transaction import TransactionManagementError

from django_grpc.hygiene.loop_calls import LOST, Owner, current_call, is_of, owner_of


class AtomicBlocks(list[Any]):
    """A connection's `atomic_blocks`, which Django appends to and pops from.

    The blocks of calls that share a connection may end in another order than they have begun:
    Django does not mind, but takes the last one off its list whichever ends.

    Args:
        alias: Of the connection.
        blocks: Those that are open already, which are taken for those of no call.

    Attributes:
        owners: Who has begun those that are open.
    """

    def __init__(self, alias: str, blocks: Collection[Any] = ()) -> None:
        super().__init__(blocks)
        self._alias = alias
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
            if call is not None and call.leaves_lost_block(self._alias):
                raise TransactionManagementError(LOST)
            del self.owners[-1:]
        return super().pop(index)
