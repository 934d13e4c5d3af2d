"""One map of int64 ids to numbers, timed in a process of its own: prints seconds of inserting and of looking up.

    python peer_id_map.py NAME IDS

Runs in the peers' environment, so it imports nothing of this project but for NAME=ours (PYTHONPATH says where).
Inserts grow an empty map by blocks of 65,536 ids, as a stream does; maps that can only be built at once get all of
them at once, which is faster. Lookups are all ids in another order, by blocks of the same size.
"""

import json
import sys
import time

import numpy as np

BLOCK = 1 << 16


def blocks(ids):
    return [ids[start : start + BLOCK] for start in range(0, ids.shape[0], BLOCK)]


def ours():
    from model.key_index import KeyIndex

    index, zeros = KeyIndex(), np.zeros(int(sys.argv[2]), np.int16)
    return (lambda ids: index.add(zeros[: ids.shape[0]], ids)), lambda ids: index.find(
        zeros[: ids.shape[0]], ids
    )


def python_dict():
    known = {}

    def insert(ids):
        for key in ids.tolist():
            known.setdefault(key, len(known))

    return insert, lambda ids: np.fromiter(map(known.get, ids.tolist()), np.int64, ids.shape[0])


def numba_dict():
    from numba import njit, types
    from numba.typed import Dict

    known = Dict.empty(types.int64, types.int64)

    @njit
    def insert(known, ids):
        for k in range(ids.shape[0]):
            if ids[k] not in known:
                known[ids[k]] = len(known)

    @njit
    def find(known, ids):
        out = np.empty(ids.shape[0], np.int64)
        for k in range(ids.shape[0]):
            out[k] = known[ids[k]]
        return out

    return (lambda ids: insert(known, ids)), lambda ids: find(known, ids)


def hirola():
    from hirola import HashTable

    table = HashTable(BLOCK, np.int64)
    table.add(np.zeros(0, np.int64))

    def insert(ids):
        nonlocal table
        if len(table) + ids.shape[0] > table.max / 1.5:
            table = table.resize(int((len(table) + ids.shape[0]) * 3))
        table.add(ids)

    return insert, lambda ids: table.get(ids)


def pandas():
    import pandas as pd

    held = []

    def insert(ids):
        held.append(pd.Index(ids))
        held[0].get_indexer(ids[:1])  # builds its table

    return insert, lambda ids: held[0].get_indexer(ids)


def pyarrow():
    import pyarrow as pa
    import pyarrow.compute as pc

    held = []

    def insert(ids):
        held.append(pa.array(ids))
        held[
            0
        ].dictionary_encode()  # what building a table of them costs: index_in builds its own at every call

    return insert, lambda ids: pc.index_in(pa.array(ids), value_set=held[0]).to_numpy(zero_copy_only=False)


def polars():
    import polars as pl

    held = []

    def insert(ids):
        held.append(pl.DataFrame({"id": ids, "row": np.arange(ids.shape[0])}))
        held[0].select(pl.col("id").unique())

    def find(ids):
        wanted = pl.DataFrame({"id": ids})
        return wanted.join(held[0], on="id", how="left", maintain_order="left")["row"].to_numpy()

    return insert, find


MAPS = {
    "ours": (ours, BLOCK, BLOCK),
    "ours at once": (ours, 0, BLOCK),
    "dict": (python_dict, BLOCK, BLOCK),
    "numba typed.Dict": (numba_dict, BLOCK, BLOCK),
    "hirola": (hirola, BLOCK, BLOCK),
    "pandas Index": (pandas, 0, BLOCK),
    "pyarrow index_in": (pyarrow, 0, 0),
    "polars join": (polars, 0, 0),
}


def timed(function, ids, block):
    """Nothing that a call returns is kept: what memory costs is not what a map costs."""
    parts = blocks(ids) if block else [ids]
    wall, cpu = time.perf_counter(), time.process_time()
    for part in parts:
        function(part)
    return time.perf_counter() - wall, time.process_time() - cpu


def main():
    name, count = sys.argv[1], int(sys.argv[2])
    rng = np.random.default_rng(1)
    ids = np.unique(rng.integers(-(2**62), 2**62, count))
    rng.shuffle(ids)
    order = rng.permutation(ids.shape[0])
    make, insert_block, find_block = MAPS[name]
    insert, find = make()  # compiles on a small map of its own
    insert(ids[:100].copy())
    find(ids[:100].copy())
    insert, find = make()
    insert_s, insert_cpu_s = timed(insert, ids, insert_block)
    find_s, find_cpu_s = timed(find, ids[order], find_block)
    some = order[-1_000_000:]
    assert (find(ids[some]) == some).all(), f"{name} gave other numbers than the order of arrival"
    result = {"insert_s": insert_s, "insert_cpu_s": insert_cpu_s, "find_s": find_s, "find_cpu_s": find_cpu_s}
    print(json.dumps({"ids": ids.shape[0], **result}))


if __name__ == "__main__":
    main()
