"""What the experts of a trained run do: load, drops, and what they specialize in, layer by layer.

Reads the run's own test texts with its best checkpoint, records the routing and prints a table with a row a
layer. Writes experts.json and plots into the run directory's experts/. The columns:

    cv, max      of how often experts are chosen: standard deviation and largest, both over the mean
    dropped      share of the choices for which there was no room
    router       entropy of the router's probabilities over log E: 1 is undecided
    token id     what share of the choice of expert the token's id explains, and in brackets with the ids
                 shuffled among tokens, which is what chance alone would show
    domain       likewise, the domain of the text (of a dual encoder: query or document); in brackets with the
                 domains shuffled among texts
    alike        mean cosine of the weights of two experts
    agree        share of the choices that --against makes too

Examples:
  python -m experiments.experts --workdir=runs/lm
  python -m experiments.experts --workdir=runs/lm --documents=50 --against=runs/lm_shorter
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval import plots, results, trec
from experiments import cli, recording
from experiments.recording import NONE, Layer, Recording
from moe import inspection

FOLDER = "experts"
_BINS = 16  # of positions
_TYPICAL = 8  # tokens that are named for each expert
_SHUFFLED = "shuffled"


def main() -> None:
    """Entry point of `retrievax-experts`."""
    command = cli.Command(__doc__)
    workdir = command.string("workdir", "runs/latest", "The run: a language model, or a dual encoder.")
    documents = command.integer("documents", 200, "Texts of each domain, at most.", lower_bound=1)
    batch_size = command.integer("batch_size", 32, "Texts read at a time.", lower_bound=1)
    least = command.integer(
        "least", 20, "How often a token id must occur to be counted among ids.", lower_bound=1
    )
    against = command.string("against", None, "A run whose routing of the same texts is compared.")

    def inspect() -> None:
        ours = recording.record(workdir.value, documents=documents.value, rows=batch_size.value)
        theirs = None
        if against.value is not None:
            theirs = recording.record(against.value, documents=documents.value, rows=batch_size.value)
            check_same_texts(ours, theirs, against.value)
        found = {
            name: layer_report(layer, ours, least=least.value, against=theirs and theirs.layers[name])
            for name, layer in ours.layers.items()
        }
        folder = Path(workdir.value) / FOLDER
        about = {
            "step": ours.step,
            "texts": dict(zip(ours.domains, ours.texts, strict=True)),
            "least": least.value,
            "against": against.value,
        }
        with trec.replacing(folder / "experts.json") as file:
            json.dump({"meta": about, "layers": found}, file, indent=1)
            file.write("\n")
        draw(folder, found, ours)
        print(f"\n{table(found)}\n\nwritten: {folder}/experts.json, {', '.join(PICTURES)}")

    command.run(inspect)


def check_same_texts(ours: Recording, theirs: Recording, name: str) -> None:
    """Raises UsageError unless two recordings have the same layers, of the same tokens."""
    if ours.layers.keys() != theirs.layers.keys():
        raise cli.UsageError(
            f"--against: {name} has the layers {', '.join(theirs.layers)}; allowed: {', '.join(ours.layers)}"
        )
    for layer, of in ours.layers.items():
        if not np.array_equal(of.tokens, theirs.layers[layer].tokens):
            raise cli.UsageError(
                f"--against: {name} reads other tokens; allowed: a run with the same test texts, tokenizer "
                "and lengths"
            )


def layer_report(
    layer: Layer, of: Recording, *, least: int = 1, against: Layer | None = None
) -> dict[str, Any]:
    """Returns the measures of one layer, as JSON holds them.

    Args:
      layer: as recorded.
      of: the recording.
      least: token ids that occur less often are left out.
      against: the same layer of another run.
    """
    edges, experts = layer.edges, layer.num_experts
    chosen_E = inspection.load(edges, experts)
    cv, largest = inspection.imbalance(chosen_E)
    bins = min(_BINS, of.length)
    bin_T = np.where(layer.positions == NONE, NONE, layer.positions * bins // of.length)
    everything_T = np.where(layer.tokens == NONE, NONE, 0)
    ids = inspection.specialization(edges, layer.tokens, experts, least=least)
    domains = inspection.specialization(edges, layer.domains, experts)
    return {
        "experts": experts,
        "tokens": int((layer.tokens != NONE).sum()),
        "chosen": chosen_E.tolist(),
        "served": inspection.load(edges.served(), experts).tolist(),
        "cv": cv,
        "max_over_mean": largest,
        "dropped": float(inspection.dropped(edges, everything_T, 1)[0]),
        "unserved": float(inspection.unserved(edges, everything_T, 1)[0]),
        "dropped_by_position": _numbers(inspection.dropped(edges, bin_T, bins)),
        "unserved_by_position": _numbers(inspection.unserved(edges, bin_T, bins)),
        "router_entropy": layer.entropy,
        "by_token_id": _summary(ids) | {_SHUFFLED: _by_chance(layer, layer.tokens, None, least)},
        "by_domain": _summary(domains) | {_SHUFFLED: _by_chance(layer, layer.domains, layer.texts, 1)},
        "frequency_of_domain": {
            of.domains[label]: row.tolist()
            for label, row in zip(domains.labels, domains.frequency, strict=True)
        },
        "typical_tokens": _typical(ids, of),
        "similarity": inspection.between(inspection.similarity(layer.kernels)),
        "agreement": None if against is None else inspection.agreement(edges, against.edges),
    }


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the table that the program prints."""
    header = ["layer", "experts", "cv", "max", "dropped", "router", "token id", "domain", "alike"]
    compared = any(one["agreement"] is not None for one in found.values())
    rows = []
    for name, one in found.items():
        entropy = one["router_entropy"]
        rows.append(
            [
                name,
                str(one["experts"]),
                f"{one['cv']:.2f}",
                f"{one['max_over_mean']:.2f}",
                f"{one['dropped']:.1%}",
                "-" if entropy is None else f"{entropy:.2f}",
                *(_explained(one[key]) for key in ("by_token_id", "by_domain")),
                f"{one['similarity']:.2f}",
                *([f"{one['agreement']:.1%}"] if compared else []),
            ]
        )
    return results.markdown_table(header + ["agree"] * compared, rows)


PICTURES = ("load.png", "domains.png", "explained.png", "positions.png")


def draw(folder: Path, found: Mapping[str, Mapping[str, Any]], of: Recording) -> None:
    """Writes `PICTURES` into a folder."""
    texts = f"{sum(of.texts):,} test texts, step {of.step:,}"
    most = max(one["experts"] for one in found.values())
    load_YE = np.full((len(found), most), np.nan)
    for row, one in zip(load_YE, found.values(), strict=True):
        row[: one["experts"]] = np.array(one["chosen"]) / (np.mean(one["chosen"]) or 1)
    plots.heatmaps(
        folder / "load.png", {"": load_YE}, list(found), x="expert", y="", value="over an even share",
        title=f"How often experts are chosen; {texts}", middle=1.0,
    )  # fmt: skip
    panels = {name: _over_even(one["frequency_of_domain"], of.domains) for name, one in found.items()}
    plots.heatmaps(
        folder / "domains.png", panels, of.domains, x="expert", y="", value="over an even share",
        title=f"Which experts a domain chooses; {texts}", middle=1.0,
    )  # fmt: skip
    explained = {
        f"{what}{suffix}": [
            plots.Point(name, (one[key][_SHUFFLED] if suffix else one[key])["information"])
            for name, one in found.items()
        ]
        for what, key in (("token id", "by_token_id"), ("domain", "by_domain"))
        for suffix in ("", ", shuffled")
    }
    plots.lines(
        folder / "explained.png", explained, x="", y="share of the choice that is explained",
        title=f"What explains the choice of expert; {texts}",
    )  # fmt: skip
    plots.lines(
        folder / "positions.png",
        {name: _by_position(one["dropped_by_position"], of.length) for name, one in found.items()},
        x="position (the first of a bin)", y="dropped", title=f"Choices without room, by position; {texts}",
    )  # fmt: skip


def _summary(of: inspection.Specialization) -> dict[str, float]:
    return {
        "labels": len(of.labels),
        "information": of.information,
        "entropy": of.entropy,
        "top_share": of.top_share,
    }


def _by_chance(layer: Layer, label_T: np.ndarray, unit_T: np.ndarray | None, least: int) -> dict[str, float]:
    dealt_T = inspection.shuffled(label_T, unit_T)
    return _summary(inspection.specialization(layer.edges, dealt_T, layer.num_experts, least=least))


def _typical(ids: inspection.Specialization, of: Recording) -> list[list[str]]:
    """For each expert the tokens that choose it most often, of their own occurrences."""
    found = []
    for share_X in ids.frequency.T:
        best = [int(x) for x in np.argsort(-share_X, kind="stable")[:_TYPICAL] if share_X[x] > 0]
        found.append([of.tokenizer.decode([ids.labels[x]]) or f"[{ids.labels[x]}]" for x in best])
    return found


def _over_even(frequency: Mapping[str, Sequence[float]], domains: Sequence[str]) -> np.ndarray:
    """Returns [domains, E], NaN for a domain without tokens: shares of tokens over their mean."""
    experts = len(next(iter(frequency.values())))
    rows = [np.array(frequency.get(domain, [np.nan] * experts)) for domain in domains]
    return np.stack([row / (row.mean() or 1) for row in rows])


def _by_position(shares: Sequence[float | None], length: int) -> list[plots.Point]:
    """A point for each bin of positions, at the first of them."""
    return [
        plots.Point(-(-number * length // len(shares)), share)
        for number, share in enumerate(shares)
        if share is not None
    ]


def _explained(of: Mapping[str, Any]) -> str:
    return f"{of['information']:.1%} ({of[_SHUFFLED]['information']:.1%})"


def _numbers(values: np.ndarray) -> list[float | None]:
    """NaN becomes None, which JSON can hold."""
    return [None if np.isnan(value) else float(value) for value in values]


if __name__ == "__main__":
    main()
