"""Evaluate a trained run again.

Of a dual encoder: BM25 plain and tuned, the dual encoder, and their fusion. Writes results.json,
per_query.json, runs/*.trec, tables/, plots/ and the index of `experiments.search` into the run directory.

Of a language model: perplexity on test documents by domain. Writes results.json, per_query.json and tables/.

Example:
  python -m experiments.evaluate --workdir=runs/quickstart
"""

from experiments import cli, run_dirs
from training import distributed


def main() -> None:
    """Entry point of `retrievax-evaluate`."""
    command = cli.Command(__doc__)
    workdir = command.string("workdir", "runs/quickstart", "The run to evaluate.")

    def evaluate() -> None:
        distributed.start()
        run_dirs.reopen(workdir.value).evaluate()

    command.run(evaluate)


if __name__ == "__main__":
    main()
