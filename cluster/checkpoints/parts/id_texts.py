"""The texts of text ids: `id-texts-users-rRRRRR.arrow` and `id-texts-items-rRRRRR.arrow` of each rank.

A rank's files have the ids that it has read; a base has all of them, `.changes` those that are new. Ids that are
numbers are in no file, and a run without text ids writes none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import pyarrow as pa

from cluster.checkpoints.arrays import StoredContent, read_table
from cluster.checkpoints.part import Part, Saved, Slice
from streaming.arrays import BoolArray, Int64Array
from streaming.histories.id_texts import ID, IdTexts, KnownTexts

PREFIX = "id-texts-"
USERS, ITEMS = f"{PREFIX}users-r", f"{PREFIX}items-r"


class IdTextPart(Part):
    """The texts that one rank has read.

    Args:
        texts: of the run.
        keeps_user: bool (n,) of user ids int64 (n,), whose texts a restored rank keeps.
        knows_item: the same of item ids; the first rank saves those of all ranks from then on.
        rank: of this process.
    """

    names = (PREFIX,)

    def __init__(
        self,
        texts: KnownTexts,
        keeps_user: Callable[[Int64Array], BoolArray],
        knows_item: Callable[[Int64Array], BoolArray],
        rank: int,
    ) -> None:
        self._of = {USERS: texts.users, ITEMS: texts.items}
        self._keeps, self._rank = {USERS: keeps_user, ITEMS: knows_item}, rank

    def forget(self) -> None:
        """See Part."""
        for texts in self._of.values():
            texts.forget_changes()

    def base(self) -> Iterator[tuple[str, Slice]]:
        """See Part."""
        for prefix, texts in self._of.items():
            for table in texts.tables():
                yield f"{prefix}{self._rank:05d}.arrow", table

    def changes(self) -> dict[str, pa.Table]:
        """See Part."""
        return {
            f"{prefix}{self._rank:05d}.changes.arrow": texts.changes() for prefix, texts in self._of.items()
        }

    def restore(self, saved: Saved) -> None:
        """See Part."""
        for prefix, texts in self._of.items():
            for file in saved.files(prefix):
                table = read_table(file)
                kept = table.filter(pa.array(self._keeps[prefix](table[ID].to_numpy())))
                texts.load(kept, foreign=prefix == ITEMS and self._rank > 0)


def read_texts(files: Iterable[StoredContent], known: IdTexts) -> IdTexts:
    """Add the texts of some files of one prefix, of a checkpoint or a version."""
    for file in files:
        known.load(read_table(file))
    return known
