"""RecTools' SASRec on the sequences of a file: runs in a virtual environment of its own, knows nothing of Freshet.

    python peer_sasrec.py DATA.npz SETTINGS.json FOLDER

DATA.npz: `item_T`, all events by user, oldest first; `offset_U1`, where each user's begin; `train_U`, how many of them
are trained on. With `steps` in the settings so many steps are timed and nothing is encoded. Otherwise `epochs` are
trained, and after each FOLDER gets `epoch-N.npz`: the items that the model knows with their vectors, and the vectors
of all users as of `train_U` (validation) and one event later (test). Prints what training cost, as JSON.

Shape letters: U users, T events, I known items, B users of a batch, D columns.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import rectools
import torch
from pytorch_lightning import Callback, Trainer, seed_everything
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel
from rectools.models.nn.item_net import IdEmbeddingsItemNet

_USERS_AT_ONCE = 512


class TrainingClock(Callback):
    """Seconds and targets of training, from the end of the warm-up's last step on, reading of batches included."""

    def __init__(self, warmup: int) -> None:
        self.warmup, self.seen, self.targets, self.counted = warmup, 0, 0, 0
        self.wall_s, self.cpu_s = 0.0, 0.0
        self._started: tuple[float, float] | None = None

    def on_train_epoch_start(self, trainer, module) -> None:
        if self.seen >= self.warmup:
            self._start()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        self.seen += 1
        if self.seen > self.warmup:
            self.targets += int((batch["y"] != 0).sum())
            self.counted += 1
        elif self.seen == self.warmup:
            self._start()

    def on_train_epoch_end(self, trainer, module) -> None:
        if self._started is not None:
            wall, cpu = self._started
            self.wall_s += time.perf_counter() - wall
            self.cpu_s += time.process_time() - cpu
            self._started = None

    def _start(self) -> None:
        self._started = time.perf_counter(), time.process_time()


def main() -> None:
    data_path, settings_path, folder = map(Path, sys.argv[1:4])
    settings = json.loads(settings_path.read_text())
    torch.set_num_threads(1)
    seed_everything(settings["seed"], workers=False)
    with np.load(data_path) as arrays:
        item_T, offset_U1, train_U = arrays["item_T"], arrays["offset_U1"], arrays["train_U"]
    dataset = training_set(item_T, offset_U1, train_U)
    model = SASRecModel(
        n_factors=settings["dim"],
        n_blocks=settings["layers"],
        n_heads=settings["heads"],
        session_max_len=settings["window"],
        dropout_rate=settings["dropout"],
        loss=settings["loss"],
        n_negatives=settings["negatives"],
        batch_size=settings["batch_users"],
        lr=settings["learning_rate"],
        item_net_block_types=(IdEmbeddingsItemNet,),
        get_trainer_func=lambda: trainer(settings),
    )
    if settings["steps"]:
        model.fit(dataset)
    for epoch in range(1, settings["epochs"] + 1):
        model.fit_partial(dataset, min_epochs=1, max_epochs=1)
        vectors = encoded(model, item_T, offset_U1, train_U, settings["window"])
        np.savez(folder / f"epoch-{epoch}.npz", **vectors)
        print(f"peer: epoch {epoch} of {settings['epochs']}", file=sys.stderr, flush=True)
    [clock] = [c for c in model.fit_trainer.callbacks if isinstance(c, TrainingClock)]
    result = {
        "version": f"rectools {rectools.__version__}, torch {torch.__version__}",
        "examples": clock.targets,
        "steps": clock.counted,
        "wall_s": clock.wall_s,
        "cpu_s": clock.cpu_s,
    }
    print(json.dumps(result))


def trainer(settings: dict) -> Trainer:
    """Lightning's, without anything that a training step does not need."""
    warmup = settings["warmup"] if settings["steps"] else 0
    return Trainer(
        accelerator="cpu",
        max_epochs=-1 if settings["steps"] else settings["epochs"],
        max_steps=warmup + settings["steps"] if settings["steps"] else -1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[TrainingClock(warmup)],
    )


def training_set(item_T: np.ndarray, offset_U1: np.ndarray, train_U: np.ndarray) -> Dataset:
    """The first `train_U` events of every user; their times are their places."""
    within_T = np.arange(item_T.shape[0]) - np.repeat(offset_U1[:-1], np.diff(offset_U1))
    user_T = np.repeat(np.arange(train_U.shape[0]), np.diff(offset_U1))
    trained_T = within_T < train_U[user_T]
    table = {
        Columns.User: user_T[trained_T],
        Columns.Item: item_T[trained_T],
        Columns.Weight: 1.0,
        Columns.Datetime: pd.to_datetime(within_T[trained_T], unit="s"),
    }
    return Dataset.construct(pd.DataFrame(table))


@torch.no_grad()
def encoded(
    model: SASRecModel, item_T: np.ndarray, offset_U1: np.ndarray, train_U: np.ndarray, window: int
) -> dict[str, np.ndarray]:
    """Vectors of known items, and of users after their training events and after one event more."""
    network = model.torch_model.eval()
    known = model.data_preparator.item_id_map.external_ids
    extra = model.data_preparator.n_item_extra_tokens
    ids_I = np.array(known[extra:].tolist(), np.int64)
    order_I = np.argsort(ids_I)
    at_T = np.minimum(np.searchsorted(ids_I, item_T, sorter=order_I), ids_I.shape[0] - 1)
    found_T = ids_I[order_I[at_T]] == item_T
    token_T = np.where(found_T, order_I[at_T] + extra, 0)
    item_ID = network.item_model.get_all_embeddings()
    ends = {"validation": train_U, "test": np.minimum(train_U + 1, np.diff(offset_U1))}
    out = {"item_ids": ids_I, "items": item_ID[extra:].numpy()}
    for name, end_U in ends.items():
        out[name] = _users(network, item_ID, token_T, offset_U1, end_U, window)
    network.train()
    return out


def _users(
    network: torch.nn.Module,
    item_ID: torch.Tensor,
    token_T: np.ndarray,
    offset_U1: np.ndarray,
    end_U: np.ndarray,
    window: int,
) -> np.ndarray:
    """float32 (U, D): the state of the last of the first `end_U` items; what the model does not know is left out."""
    parts = []
    for first in range(0, end_U.shape[0], _USERS_AT_ONCE):
        users = range(first, min(first + _USERS_AT_ONCE, end_U.shape[0]))
        session_BL = np.zeros((len(users), window), np.int64)
        for row, user in enumerate(users):
            tokens = token_T[offset_U1[user] : offset_U1[user] + end_U[user]]
            tokens = tokens[tokens > 0][-window:]
            session_BL[row, window - tokens.shape[0] :] = tokens
        states = network.encode_sessions({"x": torch.from_numpy(session_BL)}, item_ID)
        parts.append(states[:, -1].numpy().copy())
    return np.concatenate(parts)


if __name__ == "__main__":
    main()
