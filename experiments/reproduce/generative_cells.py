"""The cells of the study of generative retrieval at scale: what each trains, in which order, and what it
found.

From a base cell one thing at a time is changed. Cells of one budget are trained in order, several at a time,
until the time is up; the same command goes on with those that are missing.
"""

import concurrent.futures
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from corpora.sources import beir_folder
from corpora.tables import DataError
from eval import measures, results, trec
from experiments import cost, generative_docids, run_dirs
from experiments.cli import UsageError
from experiments.reproduce import runs
from experiments.reproduce.clock import Clock

GENERATIVE, DUAL = "generative_retrieval/scaling.py", "dual_encoder/nested.py"
GENERATOR = "generator"
ALL_DATA = "documents+generated+queries"
_OPERATIONS = "operations.json"  # of a run's whole training


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What a budget sets.

    Attributes:
      minutes: of processor time, for each of the `workers`, after which no more cells are begun; None for
        no end. On a machine with other work that takes longer, and finds the same.
      steps: of training, but for cells of equal computation.
      corpora: documents by name, 0 for all; the base cell has the second.
      widths: of the smaller model, of all others, and of the larger one.
      common: more of the config's argument, for all cells.
      generator: of the query generator's.
      queries: that are generated for each document.
      workers: cells that are trained at a time.
    """

    minutes: float | None
    steps: int = 700
    corpora: Mapping[str, int] = dataclasses.field(default_factory=lambda: {"1k": 1000, "4k": 4000, "all": 0})
    widths: tuple[int, int, int] = (64, 128, 192)
    common: Mapping[str, Any] = dataclasses.field(
        default_factory=lambda: dict(folder="medquad", test=200, dev=200, layers=2, batch=128, rate=1e-3)
    )
    generator: Mapping[str, Any] = dataclasses.field(
        default_factory=lambda: dict(folder="medquad", steps=300)
    )
    queries: int = 5
    workers: int = 2


@dataclasses.dataclass(frozen=True)
class Cell:
    """Attributes:
    name: short.
    corpus: the name of its size.
    what: what is changed, in words.
    fields: the config's argument, beside what all have in common.
    like: the cell whose training operations it is given, in as many steps as they pay for; "" for as many
      steps as all.
    vectors: whether its docids are made of a dual encoder's vectors.
    extra: whether it is no part of the study at its budget, but of the sweep beyond.
    """

    name: str
    corpus: str
    what: str
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    like: str = ""
    vectors: bool = False
    extra: bool = False

    @property
    def dual(self) -> bool:
        return self.name.startswith("dual-")

    @property
    def needs(self) -> list[str]:
        """Cells that come before it."""
        generated = [GENERATOR] if "generated" in self.fields.get("data", "") else []
        vectors = [f"dual-{self.corpus}"] if self.vectors else []
        return generated + vectors + ([self.like] if self.like and not self.dual else [])


@dataclasses.dataclass(frozen=True)
class Found:
    """What a cell came to.

    Attributes:
      values: measure -> query_id -> value on test.
      about: steps, parameters, operations of training, and of docids symbols, length and collisions.
    """

    values: measures.PerQuery
    about: Mapping[str, Any]


def cells(sizes: Sizes) -> list[Cell]:
    """Returns all cells in the order in which they are begun; what a cell needs comes before it."""
    corpora = list(sizes.corpora)
    base, small, large = corpora[1], sizes.widths[0], sizes.widths[2]
    every = dict(scheme="atomic", data=ALL_DATA)
    labeled = every | dict(data="documents+queries")

    def ids(scheme: str, corpus: str = base, **more: Any) -> Cell:
        vectors = scheme in ("semantic", "semantic2d", "residual")
        name = scheme if corpus == base else f"{scheme}-{corpus}"
        return Cell(name, corpus, f"{scheme} ids", every | dict(scheme=scheme), vectors=vectors, **more)

    return [
        *(Cell(f"dual-{corpus}", corpus, "dual encoder", {}, like=f"full-{corpus}") for corpus in corpora),
        *(Cell(f"labeled-{corpus}", corpus, "no generated queries", labeled) for corpus in corpora),
        *(Cell(f"full-{corpus}", corpus, "atomic ids, all data", every) for corpus in corpora),
        ids("semantic2d"),
        ids("naive"),
        ids("semantic"),
        Cell("synthetic", base, "no real queries", every | dict(data="documents+generated")),
        Cell("documents", base, "documents alone", every | dict(data="documents")),
        Cell("consistency", base, "consistency loss", every | dict(consistency=0.15), like=f"full-{base}"),
        Cell(
            "prefix-aware",
            base,
            "semantic2d ids, prefix-aware decoder",
            every | dict(scheme="semantic2d", prefix_aware=1),
            like="semantic2d",
            vectors=True,
        ),
        ids("residual"),
        ids("random"),
        Cell("small", base, f"width {small}", every | dict(width=small)),
        Cell("large", base, f"width {large}", every | dict(width=large)),
        # The grid beyond one factor at a time.
        *(
            ids(scheme, corpus, extra=True)
            for scheme in ("naive", "semantic")
            for corpus in corpora
            if corpus != base
        ),
        *(
            Cell(
                f"synthetic-{corpus}",
                corpus,
                "no real queries",
                every | dict(data="documents+generated"),
                extra=True,
            )
            for corpus in corpora
            if corpus != base
        ),
        Cell(f"large-{corpora[-1]}", corpora[-1], f"width {large}", every | dict(width=large), extra=True),
    ]


def train(folder: Path, sizes: Sizes) -> dict[str, Found]:
    """Trains what is not in `folder` yet, as long as there is time; returns by name what cells have found.

    Raises:
      UsageError: the collection is not there, or a program failed.
    """
    try:
        beir_folder.find(sizes.common["folder"])
    except DataError as error:
        raise UsageError(f"the collection {sizes.common['folder']} is needed: {error}") from None
    with Clock(folder / "clock.json") as clock:
        return _Study(folder, sizes, clock).run()


class _Study:
    def __init__(self, folder: Path, sizes: Sizes, clock: Clock):
        self._folder, self._sizes, self._clock = folder, sizes, clock
        self._cells = {cell.name: cell for cell in cells(sizes)}

    def run(self) -> dict[str, Found]:
        with concurrent.futures.ThreadPoolExecutor(self._sizes.workers) as pool:
            # Begun in this order, so what a cell waits for is done or under way.
            futures = {GENERATOR: pool.submit(self._generate)}
            for name, cell in self._cells.items():
                futures[name] = pool.submit(self._train, cell, {need: futures[need] for need in cell.needs})
            try:
                done = {name: future.result() for name, future in futures.items()}
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        found = {}
        for name, cell in self._cells.items():
            found |= _found(done[name], cell) if done[name] else {}
        return found

    def _generate(self) -> Path | None:
        """Trains the query generator, and writes queries of all documents."""
        run_dir = self._run(GENERATOR, "generative_retrieval/query_generator.py", self._sizes.generator)
        if run_dir is None:
            return None
        into = run_dir / "generated"
        if not (into / "queries.jsonl").exists():
            print("generating queries", flush=True)
            count = self._sizes.queries
            runs.program(
                "generate_queries",
                f"--workdir={run_dir}",
                f"--output={into}",
                f"--queries_per_document={count}",
            )
            self._clock.save()
        return into / "queries.jsonl"

    def _train(self, cell: Cell, needs: Mapping[str, concurrent.futures.Future]) -> Path | None:
        found = {need: future.result() for need, future in needs.items()}
        if None in found.values():
            return None
        given = self._given(cell)
        if GENERATOR in found:
            given["generated"] = found[GENERATOR]
        if cell.vectors:
            given["vectors"] = found[f"dual-{cell.corpus}"]
        given["steps"] = self._sizes.steps
        if cell.like:
            length = 1 if cell.dual else _longest(found[cell.like])
            reference = self._cells[cell.like]
            paid = self._sizes.steps * operations(reference, self._given(reference), length)
            given["steps"] = max(3, round(paid / operations(cell, given, length)))
        run_dir = self._run(cell.name, config_of(cell), given, extra=cell.extra)
        if run_dir is not None and not (run_dir / _OPERATIONS).exists():
            each = operations(cell, given, 1 if cell.dual else _longest(run_dir))
            with trec.replacing(run_dir / _OPERATIONS) as file:
                json.dump(given["steps"] * each, file)
        return run_dir

    def _given(self, cell: Cell) -> dict[str, Any]:
        of = self._sizes
        return {**of.common, "documents": of.corpora[cell.corpus], "width": of.widths[1], **cell.fields}

    def _run(self, name: str, config: str, given: Mapping[str, Any], *, extra: bool = False) -> Path | None:
        """Trains a run, or goes on with it; None where it is not done, and the time is up or, as it is extra,
        none is set aside for it."""
        run_dir, limit = runs.directory(self._folder, name, given), self._sizes.minutes
        spent = self._clock.cpu_seconds / self._sizes.workers
        over = limit is not None and (extra or spent > 60 * limit)
        if over and not runs.is_done(run_dir):
            return None
        runs.train(self._folder, name, config, given)
        self._clock.save()
        return run_dir


def config_of(cell: Cell) -> str:
    """Returns the config file of a cell."""
    return DUAL if cell.dual else GENERATIVE


def operations(cell: Cell, given: Mapping[str, Any], docid_length: int) -> float:
    """Returns the floating-point operations of a training step, forward and backward, at full length.

    Args:
      cell: whose config it is.
      given: its argument; files that it names are not read.
      docid_length: symbols of the longest docid.
    """
    if "generated" in given.get("data", ""):
        given = {"generated": "a file", **given}
    config = runs.load(config_of(cell), given) | {"plan": {"docid_length": docid_length}}
    found = cost.of(config)
    return found["flops_per_token"]["forward_and_backward"]["total"] * found["tokens_of_a_batch"]


def _longest(run_dir: Path) -> int:
    """Symbols of the longest docid of a run."""
    return generative_docids.read_about(run_dir)["longest"]


def _found(run_dir: Path, cell: Cell) -> dict[str, Found]:
    """What a run found by the name of its cell, and of a dual encoder's what BM25 did."""
    held = results.read(run_dir)
    of_docids = held.meta.get("docids", {})
    about = {
        "steps": run_dirs.load_config(run_dir)["schedule"]["total_steps"],
        "best_step": held.meta["best_step"],
        "parameters": held.meta["parameters"],
        "operations": json.loads((run_dir / _OPERATIONS).read_text()),
        "symbols": of_docids.get("symbols"),
        "length": of_docids.get("longest"),
        "collisions": of_docids.get("collisions"),
        "seconds": sum(held.meta["wall_seconds"].values()),
    }
    if not cell.dual:
        return {cell.name: Found(held.per_query["generative"], about)}
    return {
        cell.name: Found(held.per_query["dual_encoder"], about),
        f"bm25-{cell.corpus}": Found(held.per_query["bm25"], {}),
    }
