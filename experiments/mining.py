"""What experiments that train with mined negatives share: tables of a run's start, and what mining left
out."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from corpora.batches import Pairs
from corpora.dataset import Dataset
from dual_encoder.negative_filters import Mined, is_positive
from training import distributed, tables

NEGATIVES = "negatives"  # the table of mined documents, int32 [queries, M]
COUNTS = "negatives.json"  # in the run directory: by step, what mining found and each filter removed


def table(run_dir: Path, name: str, make: Callable[[], np.ndarray], title: str) -> np.ndarray:
    """Returns a table of the run's start, which the first process makes where it is not there yet."""
    file = run_dir / tables.FOLDER / f"{name}.npy"
    with distributed.leader_first(title):
        if not file.exists():
            tables.save(file, make())
        return tables.load(file)


def told(
    mined: Mined, run_dir: Path, step: int, dataset: Dataset, pairs: Pairs, *, drop_same_id: bool
) -> np.ndarray:
    """Returns the mined documents int32 [queries, M], and says what became of all candidates.

    The report is printed, a line a filter, and kept in the run's `negatives.json`.

    Args:
      mined: the negatives.
      run_dir: the run.
      step: after which they were mined; 0 before the first.
      dataset: the collection.
      pairs: training examples.
      drop_same_id: whether no system may find the document of a query's own id, which is then left out.
    """
    if drop_same_id:
        row_of = {doc_id: row for row, doc_id in enumerate(dataset.doc_ids)}
        own_Q1 = np.array([[row_of.get(query_id, -1)] for query_id in pairs.query_ids])
        mined = mined.without("own document", is_positive(mined.rows, own_Q1))
    first, *rest = mined.lines()
    print("\n".join([f"negatives after step {step:,}: {first}", *rest]), flush=True)
    if distributed.is_leader():
        file = run_dir / COUNTS
        known = json.loads(file.read_text()) if file.exists() else {}
        known[str(step)] = {
            "candidates": mined.candidates,
            "removed": mined.removed,
            "kept": int((mined.rows >= 0).sum()),
        }
        partial = file.with_name(f"{COUNTS}.partial")
        partial.write_text(json.dumps(known, indent=1))
        partial.replace(file)
    return mined.rows
