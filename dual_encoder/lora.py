"""Low-rank adaptation of chosen kernels (Hu et al., 2022, "LoRA: Low-Rank Adaptation of Large Language
Models").

    kernel + (alpha / rank) A B,  A [..., D, R],  B [..., R, F]

A begins from a normal distribution of variance 1 / D (the paper: a random Gaussian), B at zero, so that at
the start the model computes what its kernels alone do. The sum is made where a Task hands parameters to its
model: layers know nothing of it, it costs no activations, and texts are encoded at the price of the model
alone. The price of training is the gradient of the chosen kernels, which an adapter inside the layers would
not compute. Hu et al. put dropout before A, which this form cannot have.

A config names it beside the model, and freezes the rest:

    lora=dict(name="dual_encoder.lora.Lora", kernels=("attention/(query|value)/kernel",), rank=8, alpha=16.0),
    frozen=("^model/",),

Letters: D and F the two last axes of a kernel; before them those of a stack, such as layers or experts; R
rank.
"""

import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp

from training.paths import check_patterns, map_with_path, paths


@dataclasses.dataclass(frozen=True)
class Lora:
    """Attributes:
    kernels: regular expressions; a parameter of the model is adapted where one is found in its path, such as
      `query/encoder/block/attention/value/kernel`.
    rank: R.
    alpha: what A B is multiplied by, over R.

    Raises:
      ValueError: no kernels, or one string of them; or a rank below 1.
    """

    kernels: tuple[str, ...]
    rank: int = 8
    alpha: float = 16.0

    def __post_init__(self):
        if not self.kernels or isinstance(self.kernels, str):
            raise ValueError(f"kernels is {self.kernels!r}; allowed: a sequence of regular expressions")
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise ValueError(f"rank is {self.rank!r}; allowed: an integer of at least 1")

    def init(self, rng: jax.Array, params: Any) -> dict[str, Any]:
        """Returns the adapters of a model's parameters: `{"a", "b"}` by the path of each kernel, with dots,
        so that a mesh's rules for kernels are not for these too.

        Raises:
          SpecError: an expression is found in no path.
          ValueError: one is found in the path of what is no kernel (fewer than two axes), or R is above D or
          F.
        """
        check_patterns(self.kernels, params, "lora.kernels")
        chosen = {
            path: leaf
            for path, leaf in zip(paths(params), jax.tree.leaves(params), strict=True)
            if any(re.search(pattern, path) for pattern in self.kernels)
        }
        adapters: dict[str, Any] = {}
        for number, (path, leaf) in enumerate(chosen.items()):
            if leaf.ndim < 2 or self.rank > min(leaf.shape[-2:]):
                raise ValueError(
                    f"lora: {path} has the shape {leaf.shape}; allowed with rank {self.rank}: two last "
                    "axes of at least that"
                )
            *stack, width, features = leaf.shape
            normal = jax.random.normal(jax.random.fold_in(rng, number), (*stack, width, self.rank))
            b = jnp.zeros((*stack, self.rank, features))
            adapters[_dotted(path)] = {"a": normal / math.sqrt(width), "b": b}
        return adapters

    def merged(self, params: Any, adapters: Any) -> Any:
        """Returns the model's parameters with the products added."""

        def add(path: str, kernel: jax.Array) -> jax.Array:
            if _dotted(path) not in adapters:
                return kernel
            product = jnp.matmul(adapters[_dotted(path)]["a"], adapters[_dotted(path)]["b"])
            return kernel + (self.alpha / self.rank * product).astype(kernel.dtype)

        return map_with_path(add, params)


def _dotted(path: str) -> str:
    return path.replace("/", ".")
