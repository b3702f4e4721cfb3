"""Let a trained language model go on with a prompt.

Examples:
  python -m experiments.sample --workdir=runs/lm --prompt="Once upon a time"
  python -m experiments.sample --workdir=runs/lm --prompt="What is asthma" --count=3 --top_p=0.9 --seed=1
  python -m experiments.sample --workdir=runs/lm --prompt="the boundary layer" --temperature=0
"""

import functools
from pathlib import Path

import jax
import numpy as np

from corpora import tokenizer as tokenizers
from corpora.tokenizer import TOKENIZER_FILE
from experiments import cli, run_dirs
from experiments.cli import UsageError
from language_model import sampling
from language_model.causal import Causal
from language_model.trained import best
from training.build import build
from training.mesh import Layout, data_mesh


def main() -> None:
    """Entry point of `retrievax-sample`."""
    command = cli.Command(__doc__)
    workdir = command.string("workdir", "runs/lm", "The run of a language model.")
    prompt = command.string("prompt", "", "What to go on with; by default a new document is begun.")
    count = command.integer("count", 1, "How many texts.", lower_bound=1)
    length = command.integer("length", 64, "Tokens to add, at most.", lower_bound=1)
    temperature = command.number(
        "temperature", 1.0, "0 takes the likeliest token.", lower_bound=0.0, upper_bound=100.0
    )
    top_k = command.integer("top_k", 0, "Draw from the k likeliest tokens; 0 for all.", lower_bound=0)
    top_p = command.number(
        "top_p", 1.0, "Draw from the likeliest tokens that make up p.", lower_bound=0.0, upper_bound=1.0
    )
    seed = command.integer("seed", 0, "Of the draws.", lower_bound=0)
    domain = command.string("domain", None, "Of the texts, where a router goes by it: a collection's name.")
    allow = command.boolean(
        "allow_batch_dependence", "Sample also where experts make a text depend on the others."
    )

    def sample() -> None:
        numbers = dict(
            length=length.value, temperature=temperature.value, top_k=top_k.value, top_p=top_p.value
        )
        with cli.expecting(ValueError):
            sampling.check(**numbers)
            texts = of_run(
                workdir.value,
                prompt.value,
                count.value,
                seed.value,
                domain=domain.value,
                allow_batch_dependence=allow.value,
                **numbers,
            )
        for text in texts:
            print(f"\n{text}")

    command.run(sample)


def of_run(
    run_dir: str | Path, prompt: str, count: int, seed: int, *, domain: str | None = None, **numbers: float
) -> list[str]:
    """Returns the texts, the prompt at their head as the tokenizer reads it.

    Args:
      run_dir: a trained language model.
      prompt: any text.
      count: how many.
      seed: of the draws.
      domain: of the texts, one of the run's collections; None where the model reads none.
      **numbers: length, temperature, top_k, top_p and allow_batch_dependence of
        language_model.sampling.sample.

    Raises:
      UsageError: there is no such run, it is of another family, or has no such domain.
      CheckpointError: it has no checkpoint.
      DependenceError: a text depends on the others, and that is not allowed.
    """
    config = run_dirs.load_config(run_dir)
    task = build(config["task"], "config.task")
    if not isinstance(task, Causal):
        raise UsageError(f"{run_dir} is of {config['task']['name']}; allowed: a run of {Causal.__name__}")
    domains = sorted(config["data"].get("collections", ()))  # as language_model.domains numbers them
    if domain is not None and domain not in domains:
        raise UsageError(f"--domain is {domain!r}; allowed: {', '.join(domains)}")
    mesh = data_mesh(jax.local_devices()[:1])
    _, params, state = best(run_dir, task, mesh, Layout())
    tokenizer = tokenizers.load(str(Path(run_dir) / TOKENIZER_FILE))
    (ids,) = tokenizer.encode([prompt], 2**31 - 1)
    begun = np.tile(np.array([tokenizer.cls_id, *ids], np.int32), (count, 1))
    domains_B = None if domain is None else np.full(count, domains.index(domain), np.int32)
    sample = jax.jit(functools.partial(sampling.sample, task.model, end_id=tokenizer.sep_id, **numbers))
    variables, key = task.variables(params, state), jax.random.key(seed)
    made, _ = sample(variables, begun, np.ones_like(begun), key, domains_B=domains_B)
    return [tokenizer.decode([*ids, *new]) for new in np.asarray(made).tolist()]


if __name__ == "__main__":
    main()
