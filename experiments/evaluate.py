"""Evaluate a trained run again, or a published encoder as it is.

Of a dual encoder: BM25 plain and tuned, the dual encoder, and their fusion. Writes results.json,
per_query.json, runs/*.trec, tables/, plots/ and the index of `experiments.search` into the run directory.

Of a language model: perplexity on test documents by domain. Writes results.json, per_query.json and tables/.

With --config the run directory is made first: for a config in which nothing is trained, such as
configs/pretrained.py. It is --workdir, or else runs/ with the config's name and its hash.

Examples:
  python -m experiments.evaluate --workdir=runs/quickstart
  python -m experiments.evaluate --config=configs/pretrained.py:path=MODEL_FOLDER,data=BEIR_FOLDER
"""

import sys
from pathlib import Path

from experiments import cli, run_dirs
from training import distributed

_WORKDIR = "runs/quickstart"


def main() -> None:
    """Entry point of `retrievax-evaluate`."""
    command = cli.Command(__doc__)
    workdir = command.string("workdir", None, f"The run to evaluate; by default {_WORKDIR}.")
    config = command.config(None)

    def evaluate() -> None:
        distributed.start()
        if config.value is None:
            run_dirs.reopen(workdir.value or _WORKDIR).evaluate()
            return
        made = config.value.to_dict()
        run_dirs.start(workdir.value or _run_dir(made), made).evaluate()

    command.run(evaluate)


def _run_dir(config: dict) -> Path:
    """A run directory of the config's own, so that the same command finds it again."""
    given = next(argument for argument in sys.argv if argument.startswith("--config="))
    file = Path(given.removeprefix("--config=").partition(":")[0])
    return Path("runs") / f"{file.stem}-{run_dirs.meta(config)['config_hash'][:8]}"


if __name__ == "__main__":
    main()
