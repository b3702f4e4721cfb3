"""How a trained language model is evaluated: perplexity on the test documents, by domain and over all.

Writes results.json, per_query.json and tables/. A document is called `domain/doc_id`; its values are its
log-likelihood in nats and its tokens (the end token too), whose means have the loss a token as their ratio:

    {"meta": {..., "test": {"all": {"loss": ..., "perplexity": ..., ...}, "<domain>": {...}}},
     "language_model": {"log_likelihood": ..., "tokens": ...}}

The checkpoint is chosen on dev; test is read once. A model of single tokens, their counts in the training
documents plus one, stands beside each perplexity, to say what is little.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import jax
import numpy as np

from eval import results, trec
from experiments import opening, run_dirs
from language_model.domains import ALL, Chunks
from language_model.scoring import perplexity
from language_model.trained import best
from training import distributed, metrics

if TYPE_CHECKING:
    from experiments.language import Experiment

SYSTEM = "language_model"


def evaluate(experiment: Experiment) -> results.Results:
    """Evaluates the run's best checkpoint and prints the table; see the module's docstring."""
    started = time.monotonic()
    of, run_dir = experiment.training, experiment.run_dir
    step, params, state = best(run_dir, experiment.task, of.mesh, of.layout)
    opening.warn_of_leaks(experiment.task.model, "likelihood")
    chunks = experiment.chunks("test")
    found_N, tokens_N = experiment.scorer(params, state, chunks, title="scoring test")
    with distributed.leader_first("the evaluation"):
        if distributed.is_leader():
            unigram_N = _unigram(experiment.chunks("train"), chunks, experiment.tokenizer.vocab_size)
            names = experiment.domains.document_ids("test")
            test = by_domain(experiment.domains.names, chunks, found_N, tokens_N, unigram_N)
            meta = {
                **run_dirs.meta(experiment.config),
                "data": experiment.domains.summary(),
                "corpus_hash": experiment.domains.corpus_hash,
                "best_step": step,
                "parameters": sum(x.size for x in jax.tree.leaves(params)),
                "test": test,
                "wall_seconds": {
                    "training": metrics.training_seconds(run_dir),
                    "evaluation": round(time.monotonic() - started, 1),
                },
            }
            results.write(run_dir, meta, {SYSTEM: by_document(names, chunks, found_N, tokens_N)})
            table = _table(test)
            with trec.replacing(run_dir / "tables" / "results.md") as file:
                file.write(table + "\n")
            print(f"\n{table}\n\nwritten: {run_dir}/results.json, per_query.json, tables/")
    return results.read(run_dir)


def by_document(
    names: list[str], chunks: Chunks, found_N: np.ndarray, tokens_N: np.ndarray
) -> dict[str, dict[str, float]]:
    """Returns measure -> document -> value; documents without text have none."""
    document_N = chunks.table.document_of_chunk
    found = np.bincount(document_N, found_N, minlength=len(names))
    tokens = np.bincount(document_N, tokens_N, minlength=len(names))
    there = [number for number in range(len(names)) if tokens[number]]
    return {
        "log_likelihood": {names[number]: float(found[number]) for number in there},
        "tokens": {names[number]: float(tokens[number]) for number in there},
    }


def by_domain(
    domains: list[str], chunks: Chunks, found_N: np.ndarray, tokens_N: np.ndarray, unigram_N: np.ndarray
) -> dict[str, dict[str, float]]:
    """Returns loss, perplexity, tokens and documents of all and, where there are several, of each domain."""

    def of(rows: np.ndarray) -> dict[str, float]:
        tokens = int(tokens_N[rows].sum())
        loss = -float(found_N[rows].sum()) / tokens
        return {
            "loss": loss,
            "perplexity": perplexity(loss),
            "unigram_perplexity": perplexity(-float(unigram_N[rows].sum()) / tokens),
            "tokens": tokens,
            "documents": len(np.unique(chunks.table.document_of_chunk[rows])),
        }

    parts = {ALL: of(np.ones(len(chunks.domains), bool))}
    if len(domains) > 1:
        parts |= {domain: of(chunks.domains == number) for number, domain in enumerate(domains)}
    return parts


def _unigram(train: Chunks, test: Chunks, vocab_size: int) -> np.ndarray:
    """The log-likelihood of each test chunk under the counts of the training tokens, plus one: [N]."""
    counts_V = np.bincount(train.table.tokens, minlength=vocab_size) + 1
    found_T = np.log(counts_V / counts_V.sum())[test.table.tokens]
    return np.add.reduceat(found_T, test.table.offsets[:-1])


def _table(test: dict[str, dict[str, float]]) -> str:
    header = ["test", "documents", "tokens", "loss", "perplexity", "of single tokens"]
    rows = [
        [
            name,
            f"{part['documents']:,}",
            f"{part['tokens']:,}",
            f"{part['loss']:.4f}",
            _short(part["perplexity"]),
            _short(part["unigram_perplexity"]),
        ]
        for name, part in test.items()
    ]
    return results.markdown_table(header, rows)


def _short(value: float) -> str:
    return f"{value:.2f}" if value < 1e9 else f"{value:.2e}"
