"""Hierarchical clusters as ids (Tay et al., 2022, "Transformer Memory as a Differentiable Search Index",
semantically structured identifiers, algorithm 1).

Documents are clustered by k-means, every cluster of more than `leaf_size` again, and so on. An id is the path
of clusters and the number of the document in the last one, see `suffix`. The first documents of a leaf are
numbered with one symbol, as in the paper. Later documents go down the same tree to the nearest clusters;
where they make a leaf larger than `leaf_size`, their numbers take more symbols.

Where splits are balanced, the first documents fill the tree evenly, and their ids are about as short as they
can be.

Letters: N documents, T symbols of the longest id, I inner nodes of the tree, K clusters of each, D width.
"""

import dataclasses
from typing import ClassVar

import numpy as np

from clustering import hierarchical
from clustering.hierarchical import Tree
from generative_retrieval.docids import NONE, Docids, DocidsError, Documents
from generative_retrieval.schemes import checks, suffix

_NAME, _BALANCED = "semantic", "balanced semantic"


@dataclasses.dataclass(frozen=True)
class Semantic:
    """Paths in a tree of clusters; `collisions` are those of paths without the number behind them.

    Symbols are shared by clusters of all nodes and by numbers; `by_position` tells depths apart.

    Attributes:
      branching: clusters of a node. The paper has 10; Wang et al., 2022, "A Neural Corpus Indexer for
        Document Retrieval", 30 with leaves of 30.
      leaf_size: documents that a cluster which is not split has at most, at first.
      balanced: clusters of a split have equally many documents, at first, see clustering.balanced.
    """

    branching: int = 10
    leaf_size: int = 100
    balanced: bool = False

    needs_vectors: ClassVar[bool] = True
    needs_tokenizer: ClassVar[bool] = False

    def __post_init__(self):
        checks.check_least("branching", self.branching, 2)
        checks.check_least("leaf_size", self.leaf_size, 1)

    @property
    def size(self) -> int:
        """Symbols, END included."""
        return 1 + max(self.branching, self.leaf_size + 1)

    @property
    def _name(self) -> str:
        return _BALANCED if self.balanced else _NAME

    def assign(self, documents: Documents, seed: int) -> Docids:
        """Clusters the documents' vectors and gives ids.

        Raises:
          DocidsError, ValueError: vectors are missing, malformed or not finite.
        """
        vectors_ND = checks.vectors(documents, self._name)
        found = hierarchical.fit(
            vectors_ND,
            self.branching,
            self.leaf_size,
            balanced=self.balanced,
            seed=seed,
            sharding=documents.sharding,
        )
        return self._docids(_symbols(found.paths_NT), found.tree)

    def extend(self, docids: Docids, documents: Documents, seed: int) -> Docids:
        """Leads more documents down the tree; nothing is drawn.

        Raises:
          DocidsError: `docids` are of another scheme or tree, or vectors are not as wide as the tree's.
        """
        checks.check_own(docids, self._name, self.size)
        tree = Tree(docids.state["centroids"], docids.state["children"])
        if docids.state["leaf_size"] != self.leaf_size or tree.centroids_IKD.shape[1] != self.branching:
            raise DocidsError(
                f"the tree of the docids has branching {tree.centroids_IKD.shape[1]} and leaf_size "
                f"{docids.state['leaf_size']}; allowed: {self.branching} and {self.leaf_size}"
            )
        vectors_ND = checks.vectors(documents, self._name, width=tree.centroids_IKD.shape[2])
        if not len(documents):
            return docids
        new_NT = _symbols(hierarchical.descend(tree, vectors_ND, sharding=documents.sharding))
        return self._docids(suffix.stacked(paths(docids.symbols_NT, tree), new_NT), tree)

    def _docids(self, paths_NT: np.ndarray, tree: Tree) -> Docids:
        symbols_NT, collisions = suffix.with_suffix(paths_NT, self.leaf_size, first=1)
        state = {
            "centroids": tree.centroids_IKD,
            "children": tree.children_IK,
            "leaf_size": np.int64(self.leaf_size),
        }
        return Docids(symbols_NT, self.size, self._name, collisions, state)


def _symbols(paths_NT: np.ndarray) -> np.ndarray:
    return np.where(paths_NT < 0, NONE, paths_NT + 1).astype(np.int32)


def paths(symbols_NT: np.ndarray, tree: Tree) -> np.ndarray:
    """Returns ids without the numbers at their ends: int32 [N, T], NONE behind a path."""
    at_N = np.full(len(symbols_NT), 0 if len(tree.children_IK) else NONE)
    found_NT = np.full(symbols_NT.shape, NONE, np.int32)
    for depth in range(symbols_NT.shape[1]):
        inside = np.flatnonzero(at_N != NONE)
        found_NT[inside, depth] = symbols_NT[inside, depth]
        at_N[inside] = tree.children_IK[at_N[inside], symbols_NT[inside, depth] - 1]
    return found_NT
