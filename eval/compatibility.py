"""Whether the models of a sequence can search each other's indexes.

M models in the order of their training, and a matrix [M, M] of a measure: row i, column j has the queries of
model i on the index of model j, j at most i. What is above the diagonal is not looked at.

Biondi, Pernici, Ricci and Del Bimbo (2024), "Stationary Representations"; the criterion is that of Shen et
al. (2020), "Towards Backward-Compatible Representation Learning".
"""

import numpy as np


def compatible(matrix: np.ndarray) -> np.ndarray:
    """Returns bool [M, M]: whether a later model does better on an earlier one's index than that one did
    itself; False where j is not below i.

    Raises:
      ValueError: the matrix is not square, or lacks a number below its diagonal or on it.
    """
    matrix = np.asarray(matrix, float)
    if matrix.ndim != 2 or len(matrix) != matrix.shape[1]:
        raise ValueError(f"matrix has the shape {matrix.shape}; allowed: [M, M]")
    if not np.isfinite(matrix[np.tril_indices(len(matrix))]).all():
        raise ValueError("matrix lacks numbers below its diagonal or on it")
    return np.tril(matrix > np.diag(matrix)[None, :], -1)


def average_compatibility(matrix: np.ndarray) -> float:
    """Returns the share of pairs of models of which the later is compatible with the earlier; 1 for one
    model.

    >>> average_compatibility([[0.5, 0, 0], [0.6, 0.7, 0], [0.4, 0.8, 0.9]])
    0.6666666666666666
    """
    found = compatible(matrix)
    pairs = len(found) * (len(found) - 1) / 2
    return float(found.sum() / pairs) if pairs else 1.0


def average_accuracy(matrix: np.ndarray) -> float:
    """Returns the mean of the measure over all models and indexes up to their own."""
    compatible(matrix)
    return float(np.asarray(matrix, float)[np.tril_indices(len(matrix))].mean())
