"""Reproduce a paper's tables: run what it takes, hold the paper's claims against it, write results/NAME/.

Run the same command again to go on with what was interrupted. What the verdicts mean and how a paper is added
stands in docs/reproductions.md.

Examples:
  python -m experiments.reproduce limit --budget=cpu
  python -m experiments.reproduce all --budget=cpu
"""

import difflib
import importlib
import pkgutil
from pathlib import Path

from experiments import cli, reproduce
from experiments.cli import UsageError
from experiments.reproduce import claims
from experiments.reproduce.clock import Clock

ALL = "all"


def main() -> None:
    """Entry point of `retrievax-reproduce`."""
    command = cli.Command(__doc__)
    names = command.arguments("name", f"a paper ({', '.join(papers())}) or {ALL}", least=1)
    budget = command.string("budget", "cpu", "How large, such as cpu or sweep; claims and rules stay.")
    out = command.string("results", "results", "Where NAME/table.md, table.json and plot.png are written.")
    workdir = command.string("workdir", "runs/reproduce", "Where what is done so far is kept, to go on with.")

    def run() -> None:
        known = papers()
        chosen = list(known) if names.values == [ALL] else list(dict.fromkeys(names.values))
        for name in chosen:
            check(name, budget.value, known)
        for name in chosen:
            reproduce_paper(
                name, known[name], budget.value, results=Path(out.value), workdir=Path(workdir.value)
            )
        if names.values == [ALL]:
            claims.write_index(Path(out.value))
            print(f"written: {out.value}/README.md")

    command.run(run)


def papers() -> dict[str, object]:
    """Returns by name the modules of this package that reproduce a paper: those that have BUDGETS."""
    found = {}
    for module in pkgutil.iter_modules(reproduce.__path__):
        if module.name != "__main__":
            loaded = importlib.import_module(f"{reproduce.__name__}.{module.name}")
            if hasattr(loaded, "BUDGETS"):
                found[module.name] = loaded
    return found


def check(name: str, budget: str, known: dict[str, object]) -> None:
    """Raises UsageError where there is no such paper, or it has no such budget."""
    if name not in known:
        near = difflib.get_close_matches(name, [*known, ALL], n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(f"no paper {name!r}; allowed: {', '.join(known)}, or {ALL} alone{hint}")
    if budget not in known[name].BUDGETS:
        raise UsageError(f"--budget is {budget!r}; {name} has {', '.join(known[name].BUDGETS)}")


def reproduce_paper(name: str, paper: object, budget: str, *, results: Path, workdir: Path) -> None:
    """Runs one paper and writes results/NAME; the seconds are those of all starts it took."""
    clock = Clock(workdir / name / f"clock-{budget}.json")
    with clock:
        outcome = paper.run(budget, workdir / name)
    command = f"python -m experiments.reproduce {name} --budget={budget}"
    claims.write(
        results / name,
        name,
        outcome,
        budget=budget,
        command=command,
        seconds=clock.seconds,
        cpu_seconds=clock.cpu_seconds,
    )
    for claim in outcome.claims:
        print(f"{claim.verdict:14}  {claim.name}: {claim.ours}")
    print(f"written: {results / name}/table.md, table.json, plot.png ({clock.seconds:.0f} s)")


if __name__ == "__main__":
    main()
