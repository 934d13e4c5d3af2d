"""The ledger in a delta: the counts since the parent, and always the sums."""

import numpy as np

from cluster.checkpoints.parts.ledger import LedgerPart
from cluster.ledger import Ledger, PartitionLedger


def _add(ledger, first):
    """Three events of one user."""
    ledger.partitions[0].add(np.full(3, 7), np.arange(first, first + 3), np.zeros(3, np.int64))


def test_nothing_new_is_a_table_without_rows():
    ledger = Ledger([0])
    _add(ledger, 0)
    part = LedgerPart(ledger, [0])
    part.forget()
    assert part.changes()["ledger-p00000.changes.arrow"].num_rows == 0


def test_counters_that_come_back_to_where_they_were_behind_a_gap_do_not_hide_the_new_sums():
    ledger = Ledger([0])
    _add(ledger, 0)
    part = LedgerPart(ledger, [0])
    part.forget()
    ledger.partitions[0].begin_behind(10)
    _add(ledger, 10)
    table = part.changes()["ledger-p00000.changes.arrow"]
    assert table.num_rows == 1
    again, want = PartitionLedger.from_table(table), ledger.partitions[0]
    assert (again.events, again.hash_sum) == (6, want.hash_sum)
    assert part.changes()["ledger-p00000.changes.arrow"].num_rows == 0
