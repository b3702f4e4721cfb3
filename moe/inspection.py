"""What experts do: functions of recorded routing, for after a run.

A model applied with `mutable=["routing"]` records the choice of each mixture. `edges` makes of one layer's
choice a list of (token, expert), tokens numbered through the batch as it lies, row by row; `join` puts
batches behind one another. Tokens have labels, such as their id, their position or the domain of their text:
int [T], where -1 means none, as of padding, and leaves a token out.

The measures are those of published analyses:

* Muennighoff et al. (2024), "OLMoE: Open Mixture-of-Experts Language Models": the share of the tokens of a
  domain, or of one id, that an expert serves (`specialization`), and router saturation (`agreement`).
* Xue et al. (2024), "OpenMoE: An Early Effort on Open Mixture-of-Experts Language Models": routing by token
  id whatever the context, and what is dropped towards the end (`dropped`).
* Qiu et al. (2025), "Demons in the Detail: On Implementing Load Balancing Loss for Training Specialized
  Mixture-of-Expert Models": how often experts are selected, domain by domain.

Numpy, on the host. Dimensions: G groups, T tokens, R edges, E experts, X labels, P parameters.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from moe.routing import Choice


@dataclasses.dataclass(frozen=True)
class Edges:
    """What one layer's router chose.

    Attributes:
      token: int64 [R], 0 to T - 1.
      expert: int64 [R].
      keep: bool [R]; False where the expert had no room.
      num_tokens: T, padding included.
    """

    token: np.ndarray
    expert: np.ndarray
    keep: np.ndarray
    num_tokens: int

    def served(self) -> "Edges":
        """Those for which there was room. Measures are of all choices unless they are given these."""
        return Edges(self.token[self.keep], self.expert[self.keep], self.keep[self.keep], self.num_tokens)


def edges(choice: Choice, num_tokens: int, chosen: np.ndarray | None = None) -> Edges:
    """Returns the edges of one layer and batch.

    Args:
      choice: arrays [G, R]; of a scan over layers, one layer's.
      num_tokens: T = B L of the batch.
      chosen: bool [G, R], the edges that the router did choose; the others, such as those of padding, are
        left out. None where every edge is one.
    """
    token_GR, expert_GR, keep_GR = (np.asarray(x) for x in (choice.token, choice.expert, choice.keep))
    groups = len(token_GR)
    first_G1 = (np.arange(groups) * (num_tokens // groups))[:, None]
    chosen_GR = np.ones(keep_GR.shape, bool) if chosen is None else np.asarray(chosen)
    of = (token_GR + first_G1, expert_GR.astype(np.int64), keep_GR)
    return Edges(*(x[chosen_GR] for x in of), num_tokens)


def join(parts: Sequence[Edges]) -> Edges:
    """Puts the edges of one layer over several batches behind one another."""
    first = np.cumsum([0] + [part.num_tokens for part in parts])
    return Edges(
        np.concatenate([part.token + at for part, at in zip(parts, first[:-1], strict=True)]),
        np.concatenate([part.expert for part in parts]),
        np.concatenate([part.keep for part in parts]),
        int(first[-1]),
    )


def load(of: Edges, num_experts: int) -> np.ndarray:
    """Returns int64 [E]: how many edges each expert has."""
    return np.bincount(of.expert, minlength=num_experts)


def imbalance(load_E: np.ndarray) -> tuple[float, float]:
    """Returns (coefficient of variation, largest over mean) of a load; (0, 1) where it is even.

    >>> imbalance(np.array([2, 2, 0, 0]))
    (1.0, 2.0)
    """
    mean = load_E.mean()
    if mean == 0:
        return 0.0, 1.0
    return float(load_E.std() / mean), float(load_E.max() / mean)


def dropped(of: Edges, label_T: np.ndarray, num_labels: int) -> np.ndarray:
    """Returns float64 [num_labels]: the share of the edges of a label's tokens that were not served.

    With positions, or bins of them, as labels it shows whether the end of a text is served worse (Xue et al.,
    2024, "drop towards the end"). It is for routers in which tokens choose; where experts choose, see
    `unserved`. NaN for a label that no edge has.
    """
    label_R = label_T[of.token]
    seen = label_R >= 0
    chosen = np.bincount(label_R[seen], minlength=num_labels)
    kept = np.bincount(label_R[seen & of.keep], minlength=num_labels)
    return _ratio(chosen - kept, chosen)


def unserved(of: Edges, label_T: np.ndarray, num_labels: int) -> np.ndarray:
    """Returns float64 [num_labels]: the share of a label's tokens that no expert served. NaN for none."""
    served_T = np.zeros(of.num_tokens, bool)
    served_T[of.token[of.keep]] = True
    seen = label_T >= 0
    tokens = np.bincount(label_T[seen], minlength=num_labels)
    left = np.bincount(label_T[seen & ~served_T], minlength=num_labels)
    return _ratio(left, tokens)


@dataclasses.dataclass(frozen=True)
class Specialization:
    """Which experts the tokens of each label go to.

    Attributes:
      labels: int64 [X], ascending.
      tokens: int64 [X], how many tokens have the label.
      count: int64 [X, E], how many of them have chosen each expert.
    """

    labels: np.ndarray
    tokens: np.ndarray
    count: np.ndarray

    @property
    def frequency(self) -> np.ndarray:
        """Float64 [X, E]: the share of the label's tokens that chose the expert; a row adds up to K.

        OLMoE's domain specialization and, with token ids, its vocabulary specialization.
        """
        return self.count / self.tokens[:, None]

    @property
    def top_share(self) -> float:
        """The share of tokens that chose the commonest expert of their label: K / E to 1."""
        return float(self.count.max(axis=-1).sum() / max(self.tokens.sum(), 1))

    @property
    def entropy(self) -> float:
        """H(expert | label) / log E, over edges: 1 if each label is spread evenly, 0 with one expert each."""
        experts = self.count.shape[-1]
        return float(self._within() / np.log(experts)) if experts > 1 else 0.0

    @property
    def information(self) -> float:
        """I(expert; label) / H(expert), over edges: what share of the choice the label explains, 0 to 1.

        Few tokens a label make it larger than it is; compare with `shuffled` labels.
        """
        whole = float(_entropy(self.count.sum(axis=0)))
        return float(1 - self._within() / whole) if whole > 0 else 0.0

    def _within(self) -> float:
        edges_X = self.count.sum(axis=-1)
        return float((_entropy(self.count) * edges_X).sum() / max(edges_X.sum(), 1))


def specialization(of: Edges, label_T: np.ndarray, num_experts: int, *, least: int = 1) -> Specialization:
    """Returns which labels choose whom.

    Args:
      of: the edges.
      label_T: int [T], the label of each token.
      num_experts: E.
      least: labels with fewer tokens are left out, such as ids that occur once and so have one expert each.
    """
    label_T = np.asarray(label_T)
    labels, index_T, tokens = np.unique(label_T, return_inverse=True, return_counts=True)
    often = (labels >= 0) & (tokens >= least)
    row_X = np.where(often, np.cumsum(often) - 1, -1)
    row_R = row_X[index_T[of.token]]
    seen = row_R >= 0
    count = np.zeros((int(often.sum()), num_experts), np.int64)
    np.add.at(count, (row_R[seen], of.expert[seen]), 1)
    return Specialization(labels[often], tokens[often], count)


def shuffled(label_T: np.ndarray, unit_T: np.ndarray | None = None, seed: int = 0) -> np.ndarray:
    """Returns the labels dealt out anew among the tokens that have one: what chance alone would show.

    Args:
      label_T: int [T].
      unit_T: int [T], or None; tokens of the same number, such as those of one text, have the same label
        before and after. Tokens of a text resemble each other, so that shuffling single tokens would leave
        less to chance than there is.
      seed: of the shuffle.
    """
    label_T = np.array(label_T)
    has = label_T >= 0
    units = np.arange(has.sum()) if unit_T is None else np.asarray(unit_T)[has]
    _, first, unit = np.unique(units, return_index=True, return_inverse=True)
    dealt = np.random.default_rng(seed).permutation(label_T[has][first])
    label_T[has] = dealt[unit]
    return label_T


def agreement(ours: Edges, theirs: Edges) -> float:
    """Returns the share of our edges that the other recording of the same tokens has too.

    With K choices a token it is the mean of |ours & theirs| / K: OLMoE's router saturation, where theirs is
    the end of training.

    Raises:
      ValueError: they are of different tokens.
    """
    if ours.num_tokens != theirs.num_tokens:
        raise ValueError(
            f"the recordings are of {ours.num_tokens} and {theirs.num_tokens} tokens; allowed: the same"
        )
    experts = 1 + max(int(of.expert.max(initial=0)) for of in (ours, theirs))
    keys = [of.token * experts + of.expert for of in (ours, theirs)]
    return float(np.isin(*keys).mean()) if len(keys[0]) else 1.0


def similarity(kernels: Sequence[np.ndarray]) -> np.ndarray:
    """Returns float32 [E, E]: the cosine of the weights of each pair of experts; 0 with an expert of zeros.

    Args:
      kernels: of the experts, each [E, ...]; an expert's are taken as one vector.

    It is 1 for copies and about 0 for experts that began apart; experts with the same hidden units in another
    order count as different.
    """
    flat = [np.asarray(kernel, np.float32).reshape(len(kernel), -1) for kernel in kernels]
    products_EE = sum(weights_EP @ weights_EP.T for weights_EP in flat)
    norms_E = np.sqrt(np.diag(products_EE))
    norms_EE = norms_E[:, None] * norms_E[None]
    return np.divide(products_EE, norms_EE, out=np.zeros_like(products_EE), where=norms_EE > 0)


def between(similarity_EE: np.ndarray) -> float:
    """Returns the mean over pairs of different experts; 1 where there is only one expert."""
    experts = len(similarity_EE)
    if experts < 2:
        return 1.0
    return float((similarity_EE.sum() - np.trace(similarity_EE)) / (experts * (experts - 1)))


def _entropy(count: np.ndarray) -> np.ndarray:
    """Of the distributions on the last axis, nats; 0 where there is nothing."""
    whole = count.sum(axis=-1, keepdims=True)
    p = np.divide(count, whole, out=np.zeros(count.shape), where=whole > 0)
    return -np.sum(p * np.log(p, out=np.zeros_like(p), where=p > 0), axis=-1)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)
