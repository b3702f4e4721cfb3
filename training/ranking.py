"""Losses of learning to rank from a teacher's scores, for every family of retrievers.

Each is a function of arrays, `(student [B, C], teacher [B, C], *, where [B, C]) -> loss []`: the scores of C
candidates of each query by the one that learns and by the one that is imitated. With C the documents that
a query lists it is distillation from a list; with C all documents of a batch, a row of scores for each query,
it is in-batch distillation, and then `labels` says which column is whose.

A candidate counts where `where` is true and the teacher has a score; NaN in the teacher means that it has
none. What does not count gets no gradient, and a query of fewer than two candidates has no loss and is not
counted in the mean. The teacher gets no gradient here unless a function says so.

Letters: B queries, C candidates of each.
"""

import chex
import jax
import jax.numpy as jnp


def list_net(
    student: jax.Array,
    teacher: jax.Array,
    *,
    where: jax.Array,
    temperature: float = 1.0,
    weights: jax.Array | None = None,
) -> jax.Array:
    """The mean over queries of -sum_c P_t(c) log P_s(c), with P_t = softmax(teacher / t) and P_s =
    softmax(student).

    Cao et al. (2007), "Learning to Rank: From Pairwise Approach to Listwise Approach", with top-one
    probabilities.

    Args:
      student: float32 [B, C].
      teacher: float32 [B, C], NaN where there is no score.
      where: bool [B, C], which candidates are there; a query of none or one has no loss, and is not counted.
      temperature: t, positive; that of the teacher's training gives the probabilities it was trained for.
      weights: float32 [B], how much each query counts in the mean; None for all alike.

    Raises:
      AssertionError: shapes that do not fit (chex).

    Relations: `kl` is less by the teacher's entropy, with the same gradient.

    >>> student, teacher = jnp.log(jnp.array([[0.5, 0.5]])), jnp.log(jnp.array([[0.25, 0.75]]))
    >>> print(f"{list_net(student, teacher, where=jnp.ones((1, 2), bool)):.4f}")  # log 2
    0.6931
    """
    lost_B, _, counted_B = _cross_entropy(student, teacher, where, temperature)
    return _mean(lost_B, counted_B, weights)


def kl(
    student: jax.Array,
    teacher: jax.Array,
    *,
    where: jax.Array,
    temperature: float = 1.0,
    weights: jax.Array | None = None,
) -> jax.Array:
    """The mean over queries of KL(P_t, P_s) = sum_c P_t(c) (log P_t(c) - log P_s(c)), with the probabilities
    of `list_net`.

    Hinton et al. (2015), "Distilling the Knowledge in a Neural Network", without its factor t^2; for a
    query's listed documents, Yang et al. (2024), "Translate-Distill", and Tamber et al. (2025), "Teaching
    Dense Retrieval Models to Specialize with Listwise Distillation and LLM Data Augmentation"; for all
    documents of a batch, Lin et al. (2020), "Distilling Dense Representations for Ranking using
    Tightly-Coupled Teachers".

    Arguments are those of `list_net`.

    >>> teacher = jnp.array([[3.0, 1.0, jnp.nan]])
    >>> print(f"{kl(teacher + 5, teacher, where=jnp.ones((1, 3), bool)):.4f}")  # they agree
    0.0000
    """
    lost_B, entropy_B, counted_B = _cross_entropy(student, teacher, where, temperature)
    return _mean(lost_B - entropy_B, counted_B, weights)


def margin_mse(
    student: jax.Array,
    teacher: jax.Array,
    *,
    where: jax.Array,
    labels: jax.Array | None = None,
    weights: jax.Array | None = None,
) -> jax.Array:
    """The mean over queries of the mean over their other candidates c of
    ((student_y - student_c) - (teacher_y - teacher_c))^2, with y the query's own.

    Hofstaetter et al. (2020), "Improving Efficient Neural Ranking Models with Cross-Architecture Knowledge
    Distillation", which has one negative a query; with all other documents of a batch, the in-batch teacher
    of Hofstaetter et al. (2021), "Efficiently Teaching an Effective Dense Retriever with Balanced Topic Aware
    Sampling".

    Args: as of `list_net`, and
      labels: int32 [B], the column y of each query; None for the first. A query whose own has no score of the
        teacher is not counted.

    >>> student, teacher = jnp.array([[3.0, 1.0, 2.0]]), jnp.array([[5.0, 4.0, 1.0]])
    >>> print(f"{margin_mse(student, teacher, where=jnp.ones((1, 3), bool)):.1f}")  # (2 - 1)^2, (1 - 4)^2
    5.0
    """
    where, teacher, _ = _known(student, teacher, where)
    labels_B = jnp.zeros(student.shape[0], jnp.int32) if labels is None else labels
    own_BC = labels_B[:, None] == jnp.arange(student.shape[1])[None, :]
    own = lambda x_BC: jnp.sum(jnp.where(own_BC, x_BC, 0), axis=1, keepdims=True)
    others_BC = where & ~own_BC & own(where).astype(bool)
    apart_BC = (own(student) - student) - (own(teacher) - teacher)
    count_B = others_BC.sum(axis=1)
    lost_B = jnp.where(others_BC, apart_BC**2, 0.0).sum(axis=1) / jnp.maximum(count_B, 1)
    return _mean(lost_B, count_B > 0, weights)


def rank_net(
    student: jax.Array, teacher: jax.Array, *, where: jax.Array, weights: jax.Array | None = None
) -> jax.Array:
    """The mean over queries of the mean over pairs i, j that the teacher ranks i above j of
    log(1 + exp(student_j - student_i)).

    Burges et al. (2005), "Learning to Rank using Gradient Descent". Of the teacher it takes the order alone;
    a tie is no pair.

    Args: as of `list_net`.

    >>> student, teacher = jnp.array([[1.0, 1.0]]), jnp.array([[0.0, 3.0]])
    >>> print(f"{rank_net(student, teacher, where=jnp.ones((1, 2), bool)):.4f}")  # log 2
    0.6931
    """
    where, teacher, _ = _known(student, teacher, where)
    pairs_BCC = (teacher[:, :, None] > teacher[:, None, :]) & where[:, :, None] & where[:, None, :]
    apart_BCC = jnp.where(pairs_BCC, student[:, None, :] - student[:, :, None], 0.0)
    count_B = pairs_BCC.sum(axis=(1, 2))
    lost_B = jnp.where(pairs_BCC, jax.nn.softplus(apart_BCC), 0.0).sum(axis=(1, 2)) / jnp.maximum(count_B, 1)
    return _mean(lost_B, count_B > 0, weights)


def _cross_entropy(
    student_BC: jax.Array, teacher_BC: jax.Array, where_BC: jax.Array, temperature: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns each query's cross-entropy, the teacher's entropy, and whether it is counted."""
    where_BC, teacher_BC, counted_B = _known(student_BC, teacher_BC, where_BC)
    where_BC = where_BC | ~counted_B[:, None]  # a softmax of none is NaN
    logs = lambda x_BC: jnp.where(where_BC, jax.nn.log_softmax(x_BC, axis=1, where=where_BC), 0.0)
    teacher_BC = teacher_BC / temperature
    p_BC, log_p_BC = jax.nn.softmax(teacher_BC, axis=1, where=where_BC), logs(teacher_BC)
    return -jnp.sum(p_BC * logs(student_BC), axis=1), -jnp.sum(p_BC * log_p_BC, axis=1), counted_B


def _known(
    student_BC: jax.Array, teacher_BC: jax.Array, where_BC: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the candidates with a score, the teacher without NaN, and which queries have two or more."""
    chex.assert_rank(student_BC, 2)
    chex.assert_equal_shape([student_BC, teacher_BC, where_BC])
    teacher_BC = jax.lax.stop_gradient(teacher_BC)
    scored_BC = ~jnp.isnan(teacher_BC)
    where_BC = where_BC & scored_BC
    return where_BC, jnp.where(scored_BC, teacher_BC, 0.0), where_BC.sum(axis=1) > 1


def _mean(lost_B: jax.Array, counted_B: jax.Array, weights_B: jax.Array | None) -> jax.Array:
    weights_B = counted_B if weights_B is None else jnp.where(counted_B, weights_B, 0.0)
    return jnp.where(counted_B, lost_B * weights_B, 0.0).sum() / jnp.maximum(counted_B.sum(), 1)
