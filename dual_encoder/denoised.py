"""Hard negatives that a judge has read: those that it takes for relevant are left out.

Letters: Q queries, M negatives of each.
"""

from corpora.batches import Pairs
from corpora.dataset import Dataset
from dual_encoder.negative_filters import Mined
from dual_encoder.negatives import Miner
from dual_encoder.scorers import Scorer


def denoised(
    dataset: Dataset, pairs: Pairs, *, count: int, source: Miner, judge: Scorer, below: float = 0.1
) -> Mined:
    """The negatives of another miner that a judge scores below a threshold.

    Qu et al. (2021), "RocketQA: An Optimized Training Approach to Dense Passage Retrieval for Open-Domain
    Question Answering", whose judge is a cross-encoder and whose threshold a probability of 0.1:

        negatives=dict(
            name="dual_encoder.denoised.denoised",
            count=30,
            source=dict(name="dual_encoder.negatives.bm25", count=50),
            judge=dict(
                name="dual_encoder.scorers.probability",
                scorer=dict(name="cross_encoder.trained.Scorer", run="runs/cross_encoder"),
            ),
            below=0.1,
        )

    Args:
      dataset: the collection.
      pairs: training examples.
      count: M, how many to keep a query, in the order of the source.
      source: who mines the candidates.
      judge: who scores them.
      below: the threshold, on the judge's scale; that of log odds is 0 at a probability of a half.

    Raises:
      ValueError: `count` is below 1, or the judge scores some candidate as NaN.
    """
    if count < 1:
        raise ValueError(f"negatives: count is {count}; it must be at least 1")
    found = source(dataset, pairs)
    scores_QM = judge(dataset, pairs.query_ids, found.rows)
    there_QM = found.rows >= 0
    unscored = int((scores_QM != scores_QM)[there_QM].sum())
    if unscored:
        raise ValueError(
            f"denoised: the judge gives no score to {unscored:,} of {there_QM.sum():,} candidates"
        )
    kept = found.without(f"judged {below:g} or more", there_QM & (scores_QM >= below))
    return kept._replace(rows=kept.rows[:, :count])
