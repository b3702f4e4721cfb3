"""Search a collection with a trained run: one query, or a prompt that takes many.

Examples:
  python -m experiments.search --workdir=runs/quickstart --query="parse an ISO date"
  python -m experiments.search --workdir=runs/quickstart
  python -m experiments.search --workdir=runs/quickstart --query="merge two dicts" --k=3 --json
  python -m experiments.search --workdir=runs/gr --query="what causes gout" --beams=20 --without=removed.txt
  python -m experiments.search --workdir=runs/mine --adapter=runs/mine-adapted/adapters/rank-16.npz

A generative retriever spells the ids of documents; --only and --without say which it may find. --adapter is a
file of experiments.adapt, trained on the vectors of this dual encoder.
"""

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from dual_encoder.retriever import Hit
from experiments import cli, run_dirs
from experiments.cli import UsageError
from experiments.searching import Searcher, Searching
from training.build import locate

_SNIPPET_LINES = 3
_SNIPPET_WIDTH = 100


def main() -> None:
    """Entry point of `retrievax-search`."""
    command = cli.Command(__doc__)
    workdir = command.string("workdir", "runs/quickstart", "The run to search with.")
    query = command.string("query", None, "What to search for; without it, queries are asked for.")
    k = command.integer("k", 5, "How many results.", lower_bound=1)
    system = command.string(
        "system",
        None,
        "What ranks the documents: hybrid (the default), dual_encoder or bm25; of a generative retriever "
        "generative.",
    )
    as_json = command.boolean("json", "Print one JSON object a query instead of text.")
    allow = command.boolean(
        "allow_batch_dependence", "Let a text's vector depend on the texts that are encoded with it."
    )
    beams = command.integer(
        "beams",
        None,
        "Ids that a generative retriever spells at a time; by default its config's.",
        lower_bound=1,
    )
    only = command.string(
        "only", None, "A file of doc ids, one a line: a generative retriever finds no other."
    )
    without = command.string("without", None, "A file of doc ids that a generative retriever never finds.")
    adapter = command.string("adapter", None, "A file of experiments.adapt, of the vectors of this run.")

    def search() -> None:
        config = run_dirs.load_config(workdir.value)  # names what is missing before anything heavy is loaded
        of = searching(config)
        ranks = of.systems[0] if system.value is None else system.value
        if ranks not in of.systems:
            raise UsageError(f"--system is {ranks!r}; {workdir.value} has {', '.join(of.systems)}")
        given = {flag.name: flag.value for flag in (beams, only, without, adapter) if flag.value is not None}
        for name in given:
            if name not in of.options:
                family = "dual encoders" if name == "adapter" else "generative retrievers"
                raise UsageError(f"--{name} is for {family}; {workdir.value} is none")
        if "adapter" in given and ranks == "bm25":
            raise UsageError("--adapter is given with --system=bm25, which has no vectors")
        retriever = of.load(workdir.value, config, k=k.value, allow_batch_dependence=allow.value, **given)
        for text in _ask() if query.value is None else [query.value]:
            show(retriever, text, k.value, ranks, as_json=as_json.value)

    command.run(search)


def searching(config: Mapping[str, Any]) -> Searching:
    """Returns how runs of a config's family are opened. Raises UsageError where there is nothing to search
    with."""
    family = config.get("family")
    found = getattr(locate(family, "config.family"), "searching", None)
    if found is None:
        raise UsageError(
            f"--workdir: the run is of {family}, which finds nothing; allowed: a run of a dual encoder or of "
            "a generative retriever"
        )
    return found


def show(retriever: Searcher, query: str, k: int, system: str, *, as_json: bool = False) -> None:
    """Searches and prints the results."""
    hits = retriever.search(query, k=k, system=system)
    if as_json:
        print(json.dumps({"query": query, "system": system, "hits": [hit._asdict() for hit in hits]}))
        return
    print(f"\n{query}")
    for hit in hits:
        print(f"{hit.rank:3}  {hit.score:.3f}  {hit.doc_id}")
        for line in snippet(hit):
            print(f"            {line}")
    if not hits:
        print("     no document matches")


def snippet(hit: Hit) -> list[str]:
    """Returns the first lines of a document that say something, cut to a terminal's width."""
    lines = [line.rstrip() for line in hit.text.splitlines() if line.strip()] or [hit.title or "(empty)"]
    cut = [line[: _SNIPPET_WIDTH - 3] + "..." if len(line) > _SNIPPET_WIDTH else line for line in lines]
    return cut[:_SNIPPET_LINES]


def _ask() -> Iterator[str]:
    """Yields the queries that are typed, or piped in, until the input ends."""
    with contextlib.suppress(EOFError):
        while True:
            text = input("query> " if sys.stdin.isatty() else "").strip()
            if text:
                yield text


if __name__ == "__main__":
    main()
