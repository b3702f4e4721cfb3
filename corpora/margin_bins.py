"""Negatives drawn evenly over how far below the positive a teacher puts them.

Hofstätter et al. (2021), "Efficiently Teaching an Effective Dense Retriever with Balanced Topic Aware
Sampling" (TAS-Balanced): most mined negatives are far below the positive, and drawn alike they are most of
the training. The range of a query's margins is cut into bins of equal width; a bin is drawn, of those that
are not empty all alike, and of its negatives one, all alike. A margin is the positive's score less the
negative's, so that bins of margins are those of the negatives' scores, whatever the positive.

Letters: B queries, M mined negatives of each.
"""

import numpy as np


def chances(scores_BM: np.ndarray, bins: int) -> np.ndarray:
    """Returns float64 [B, M], the chance of each negative to be the one that is drawn; 0 for a score of NaN.

    Args:
      scores_BM: a teacher's, NaN where there is no negative.
      bins: of equal width, from the lowest to the highest score of the query; 10 in the paper.

    >>> chances(np.array([[9.0, 1.0, 0.5, 0.0, np.nan]]), 2).round(3).tolist()
    [[0.5, 0.167, 0.167, 0.167, 0.0]]
    """
    there_BM = ~np.isnan(scores_BM)
    low_B1 = np.where(there_BM, scores_BM, np.inf).min(axis=1, keepdims=True)
    high_B1 = np.where(there_BM, scores_BM, -np.inf).max(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        place_BM = np.nan_to_num((scores_BM - low_B1) / (high_B1 - low_B1))  # 0 where all scores are equal
    bin_BM = np.minimum((place_BM * bins).astype(np.int64), bins - 1)
    found_BM = np.zeros(scores_BM.shape)
    for number in range(bins):
        of_bin_BM = there_BM & (bin_BM == number)
        found_BM += of_bin_BM / np.maximum(of_bin_BM.sum(axis=1, keepdims=True), 1)
    return found_BM / np.maximum(found_BM.sum(axis=1, keepdims=True), 1e-12)
