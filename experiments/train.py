"""Train an experiment, then evaluate it; run the same command again to resume.

Examples:
  python -m experiments.train --config=configs/dual_encoder/python_functions.py --workdir=runs/code
  python -m experiments.train --config=configs/dual_encoder/python_functions.py \\
      --config.data.root=$HOME/my_project --config.batch.batch_size=256 --workdir=runs/mine
  python -m experiments.train --config=configs/dual_encoder/beir_folder.py:folder=PATH --workdir=runs/beir
  python -m experiments.train --config=configs/language_model/corpora.py --workdir=runs/lm
"""

from experiments import cli, run_dirs
from training import distributed
from training.profiling import Profile


def main() -> None:
    """Entry point of `retrievax-train`."""
    command = cli.Command(__doc__)
    config = command.config("configs/dual_encoder/python_functions.py")
    workdir = command.string("workdir", "runs/latest", "The run directory: made, or resumed if it is there.")
    profile = command.string(
        "profile", None, "START:STOP, steps whose trace is written to the run directory's profile/."
    )

    def train() -> None:
        traced = None if profile.value is None else Profile.parse(workdir.value, profile.value)
        distributed.start()
        experiment = run_dirs.start(workdir.value, config.value.to_dict())
        experiment.train(profile=traced)
        experiment.evaluate()

    command.run(train)


if __name__ == "__main__":
    main()
