"""Whose the checkpoints are: of the group of workers that claimed them last, which fences off every earlier one.

A group that was cut off from the cluster, or a second run that was started on the same storage, may not know of its
successor. It finds another claim than its own when it next begins or commits a checkpoint or publishes, and stops.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass

from cluster.checkpoints.storage import Storage


class StorageTaken(RuntimeError):
    """Another group of workers goes on from these checkpoints.

    Attributes:
        by: the run that the other group belongs to.
    """

    def __init__(self, message: str, by: str) -> None:
        super().__init__(message)
        self.by = by


@dataclass(frozen=True)
class Claim:
    """One group's claim, made before it looks for a checkpoint to go on from."""

    storage: Storage
    run_id: str
    token: str

    def check(self) -> None:
        """See that nobody has claimed the storage since.

        On a disk nothing can be committed after another's claim: that removes what was being written. In an object
        store, which has no rename, a manifest that is being put at this very moment still counts; the checkpoint is
        whole, and its run ends with it.

        Raises:
            StorageTaken: somebody has.
        """
        content = self.storage.claim()
        claim = json.loads(content) if content else {"token": self.token}  # somebody has tidied up
        if claim["token"] == self.token:
            return
        who = "a later group of this run" if claim["run_id"] == self.run_id else f"run {claim['run_id']}"
        raise StorageTaken(
            f"{self.storage.where} was taken over by {who}, so this one stops; its checkpoints until then are what the "
            "other goes on from (two runs need two places: setting storage_path or train.checkpoint_path)",
            claim["run_id"],
        )


def take_over(storage: Storage, run_id: str) -> Claim:
    """Claim a storage, whoever had it."""
    claim = Claim(storage, run_id, uuid.uuid4().hex)
    storage.put_claim(json.dumps({"run_id": run_id, "token": claim.token}).encode())
    return claim
