"""Prompts stolen from a mixture of experts by whoever shares a batch, and what puts an end to it.

    Yona et al. (2024), "Stealing User Prompts from Mixture of Experts"

    python -m experiments.reproduce prompt_stealing --budget=cpu        about 2 minutes on two cores

`experiments.reproduce.tie_attack` is the attack, on a toy model of two layers with random weights. Claims,
each with its rule, stand in `claims`. The main one: with expert choice over the whole batch, prompts are read
token by token. Then what it costs, the check of a whole guess by two queries, and what remains of it where
the batch is no longer shared: with dropless token choice, with groups of one text, with ties decided at
random.
"""

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from experiments.reproduce.claims import Claim, Outcome, judge
from experiments.reproduce.tie_attack import Attacker, Server, Sizes, mixtures, random_weights

LETTERS = "abcdefghijklmnopqrstuvwxyz "  # the paper's 27
_TEXT = (
    "the of and to in is you that it he was for on are as with his they be at one have this from or had "
    "by hot word but what some we can out other were all there when up use your how said an each she "
    "which do their time if will way about many then them write would like so these her long make thing "
    "see him two has look more day could go come did number sound no most people my over know water than "
    "call first who may down "
)
WORDS = _TEXT.split()
OPEN = "expert choice"
DEFENSES = ("token choice", "groups of one text", "random ties")
MODEL = Sizes()
UNLIKELY = 0.01  # a recovery that chance reaches less often than this is above chance


@dataclasses.dataclass(frozen=True)
class Budget:
    """What a budget sets.

    Attributes:
      words: prompts of the main claim, the first of `WORDS` in a random order.
      defended: how many of them each defense is tried with.
      prompts: random prompts of each length and alphabet in the measurement of the cost.
      lengths: M of these, with the middle one of the alphabets.
      alphabets: V of these, with the middle one of the lengths.
      seed: of weights, blocking texts, prompts and guesses.
    """

    words: int
    defended: int
    prompts: int
    lengths: tuple[int, ...] = (2, 4, 8)
    alphabets: tuple[int, ...] = (6, 12, 24)
    seed: int = 0


BUDGETS = {"cpu": Budget(words=32, defended=8, prompts=8)}


@dataclasses.dataclass(frozen=True)
class Theft:
    """One prompt under attack.

    Attributes:
      layer: the name of the layer, see `tie_attack.mixtures`.
      prompt: its tokens.
      alphabet: V, those that it could have been of.
      found: what the attacker took them for.
      shown: for each whether a query showed it; the others are guesses.
      queries: batches that the server answered.
    """

    layer: str
    prompt: tuple[int, ...]
    alphabet: int
    found: tuple[int, ...]
    shown: tuple[bool, ...]
    queries: int

    @property
    def right(self) -> int:
        return sum(a == b for a, b in zip(self.prompt, self.found, strict=True))


class Thefts:
    """Attacks on the models of one seed; what is done is kept in a file and not done again."""

    def __init__(self, file: Path, seed: int, sizes: Sizes):
        self._file, self._seed, self._sizes = file, seed, sizes
        self._mixtures = mixtures(sizes)
        self._attackers: dict[str, Attacker] = {}
        self._kept: dict[str, Any] = {}
        if file.exists():
            for line in file.read_text().splitlines():
                try:
                    record = json.loads(line)
                except json.JSONDecodeError:
                    continue  # cut off as it was written
                self._kept[json.dumps(record["of"])] = record["result"]

    def steal(self, layer: str, prompt: Sequence[int], alphabet: int) -> Theft:
        """Has the attacker read a prompt of the tokens 1 to `alphabet`."""

        def run() -> dict[str, Any]:
            server = self._server(layer, prompt)
            rng = np.random.default_rng((self._seed, *prompt))
            found = self._attacker(layer).steal(server, range(1, alphabet + 1), len(prompt), rng)
            return {
                "found": [token for token, _ in found],
                "shown": [shown for _, shown in found],
                "queries": server.queries,
            }

        result = self._once(["steal", self._seed, layer, alphabet, *prompt], run)
        return Theft(
            layer, tuple(prompt), alphabet, tuple(result["found"]), tuple(result["shown"]), result["queries"]
        )

    def confirms(self, layer: str, prompt: Sequence[int], guess: Sequence[int]) -> bool:
        """Whether two queries tell the attacker that the prompt is this guess."""

        def run() -> bool:
            return self._attacker(layer).confirms(self._server(layer, prompt), guess)

        return self._once(["confirm", self._seed, layer, list(prompt), list(guess)], run)

    @functools.cached_property
    def _params(self) -> Any:
        return random_weights(self._sizes, self._seed)

    def _server(self, layer: str, prompt: Sequence[int]) -> Server:
        return Server(self._sizes, self._mixtures[layer], self._params, prompt, self._seed)

    def _attacker(self, layer: str) -> Attacker:
        if layer not in self._attackers:
            args = (self._sizes, self._mixtures[layer], self._params, self._seed)
            self._attackers[layer] = Attacker(*args)
        return self._attackers[layer]

    def _once(self, of: list, run):
        key = json.dumps(of)
        if key not in self._kept:
            self._kept[key] = run()
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a") as lines:
                print(json.dumps({"of": of, "result": self._kept[key]}), file=lines)
        return self._kept[key]


def run(budget: str, folder: Path) -> Outcome:
    """Attacks what is not yet in `folder`, and judges the claims."""
    sizes = BUDGETS[budget]
    numbers = measure(Thefts(folder / f"thefts-{budget}.jsonl", sizes.seed, MODEL), sizes)
    return Outcome(
        title='Yona et al. (2024), "Stealing User Prompts from Mixture of Experts"',
        claims=claims(numbers),
        numbers=numbers,
        tables=_tables(numbers),
        notes=NOTES,
        draw=lambda figure: _draw(figure, numbers),
    )


def measure(thefts: Thefts, sizes: Budget) -> dict[str, Any]:
    """Returns the numbers that the claims rest on."""
    rng = np.random.default_rng(sizes.seed)
    words = [WORDS[i] for i in rng.permutation(len(WORDS))[: sizes.words]]
    prompts = [tuple(LETTERS.index(letter) + 1 for letter in word) for word in words]
    stolen = {OPEN: [_told(thefts.steal(OPEN, prompt, len(LETTERS))) for prompt in prompts]}
    for defense in DEFENSES:
        some = prompts[: sizes.defended]
        stolen[defense] = [_told(thefts.steal(defense, prompt, len(LETTERS))) for prompt in some]
    right = [thefts.confirms(OPEN, prompt, prompt) for prompt in prompts]
    wrong = [thefts.confirms(OPEN, prompt, _changed(prompt, rng)) for prompt in prompts]
    length, alphabet = sizes.lengths[len(sizes.lengths) // 2], sizes.alphabets[len(sizes.alphabets) // 2]
    cost = {}
    for M, V in dict.fromkeys(
        [(M, alphabet) for M in sizes.lengths] + [(length, V) for V in sizes.alphabets]
    ):
        drawn = np.random.default_rng((sizes.seed, M, V)).integers(1, V + 1, (sizes.prompts, M))
        cost[M, V] = [_told(thefts.steal(OPEN, tuple(prompt), V)) for prompt in drawn.tolist()]
        print(
            f"M = {M}, V = {V}: {np.mean([t.queries for t in cost[M, V]]):.0f} queries a prompt", flush=True
        )
    mean = {key: float(np.mean([theft.queries for theft in found])) for key, found in cost.items()}
    return {
        "recovery": {layer: _recovery(found) for layer, found in stolen.items()},
        "confirmed": {"right": sum(right), "wrong": sum(wrong), "of": len(prompts)},
        "queries": [
            {"length": M, "alphabet": V, "mean": mean[M, V], "all": [theft.queries for theft in found],
             "right": sum(theft.right for theft in found), "tokens": M * len(found)}
            for (M, V), found in cost.items()
        ],
        "growth": {
            "length": _slope(sizes.lengths, [mean[M, alphabet] for M in sizes.lengths]),
            "alphabet": _slope(sizes.alphabets, [mean[length, V] for V in sizes.alphabets]),
        },
        "of_bound": max(
            theft.queries / (2 * V * M**2 * MODEL.experts) for (M, V), found in cost.items() for theft in
            found
        ),
        "sizes": dataclasses.asdict(sizes) | {"model": dataclasses.asdict(MODEL)},
    }  # fmt: skip


def claims(numbers: dict[str, Any]) -> list[Claim]:
    """Returns the claims with their verdicts; `numbers` are those of `measure`."""
    recovery, growth = numbers["recovery"], numbers["growth"]
    stolen, confirmed = recovery[OPEN], numbers["confirmed"]
    share, a_token = stolen["right"] / stolen["tokens"], stolen["queries"] / stolen["tokens"]
    hit, false = confirmed["right"] / confirmed["of"], confirmed["wrong"] / confirmed["of"]
    in_length, in_alphabet = growth["length"], growth["alphabet"]
    return [
        Claim(
            "prompts are read token by token",
            "996 of 1,000 words, 4,833 of 4,838 letters (table 2)",
            "reproduced if at least 95% of the letters and 90% of the words are recovered; direction if "
            "letters are recovered above chance, 1 in 27 (p < 0.01 by a binomial test).",
            f"{stolen['prompts_right']} of {stolen['prompts']} words, {stolen['right']} of "
            f"{stolen['tokens']} letters",
            judge(
                share >= 0.95 and stolen["prompts_right"] >= 0.9 * stolen["prompts"],
                stolen["chance"] < UNLIKELY,
            ),
        ),
        Claim(
            "queries a token",
            "up to 100 on average with 27 letters (figure 7)",
            "reproduced if the mean over all letters of the words is at most 100; direction if at most 200.",
            f"{a_token:.0f}",
            judge(a_token <= 100, a_token <= 200),
            "A query is a batch that the server answers; calls of the local copy are not counted.",
        ),
        Claim(
            "queries grow as V M²",
            "O(V M²) for a prompt of M tokens of a vocabulary of V (section 3.5)",
            "reproduced if none of the random prompts takes more than 2 V M² queries an expert, and the "
            "slope of log queries is at most 2.2 in log M and 0.7 to 1.3 in log V; direction if both slopes "
            "are below 3.",
            f"slopes {in_length:.2f} in M, {in_alphabet:.2f} in V; at most {numbers['of_bound']:.0%} of the "
            "bound",
            judge(
                numbers["of_bound"] <= 1 and in_length <= 2.2 and 0.7 <= in_alphabet <= 1.3,
                max(in_length, in_alphabet) < 3,
            ),
        ),
        Claim(
            "two queries confirm a whole prompt",
            "the oracle attack takes two queries (section 3.4)",
            "reproduced if at least 95% of the right prompts are confirmed and at most 5% of those with one "
            "letter changed; direction if more of the right ones.",
            f"{confirmed['right']} of {confirmed['of']} right ones, {confirmed['wrong']} of "
            f"{confirmed['of']} changed ones",
            judge(hit >= 0.95 and false <= 0.05, hit > false),
        ),
        *(_defense(name, recovery[name], share) for name in DEFENSES),
    ]


def _defense(name: str, found: dict[str, Any], undefended: float) -> Claim:
    share = found["right"] / found["tokens"]
    where = "section 5; randomness" if name == "random ties" else "section 5; independence within the batch"
    notes = {
        "token choice": "Each token goes to its best expert, and all are served.",
        "groups of one text": "Expert choice, but among the tokens of one text.",
        "random ties": "The attack is the published one, which asks each pair of queries once; a right guess "
        "is then shown in one case of four, and each expert is another try.",
    }
    return Claim(
        f"{name}: recovery falls to chance",
        f"recommended as a defense ({where}); not measured",
        "reproduced if the letters recovered are no more than chance, 1 in 27 (p >= 0.01 by a binomial "
        "test); direction if less than half of the share without a defense.",
        f"{found['right']} of {found['tokens']} letters",
        judge(found["chance"] >= UNLIKELY, share < 0.5 * undefended),
        notes[name],
    )


def _told(theft: Theft) -> Theft:
    read = "".join(
        LETTERS[token - 1] if shown else "?" for token, shown in zip(theft.found, theft.shown, strict=True)
    )
    print(f"{theft.layer}: {read!r}, {theft.queries:,} queries", flush=True)
    return theft


def _changed(prompt: Sequence[int], rng: np.random.Generator) -> tuple[int, ...]:
    """The prompt with another letter at one place."""
    at, by = int(rng.integers(len(prompt))), int(rng.integers(1, len(LETTERS)))
    changed = list(prompt)
    changed[at] = (prompt[at] - 1 + by) % len(LETTERS) + 1
    return tuple(changed)


def _recovery(found: Sequence[Theft]) -> dict[str, Any]:
    """Counts; `chance` is the probability that guessing alone finds as many tokens."""
    tokens, right = sum(len(theft.prompt) for theft in found), sum(theft.right for theft in found)
    return {
        "prompts": len(found),
        "prompts_right": sum(theft.right == len(theft.prompt) for theft in found),
        "tokens": tokens,
        "right": right,
        "shown": sum(sum(theft.shown) for theft in found),
        "queries": sum(theft.queries for theft in found),
        "chance": float(stats.binom.sf(right - 1, tokens, 1 / len(LETTERS))),
    }


def _slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Of the line through the logarithms."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


NOTES = (
    "A toy of two layers, width 32 and 4 experts with random weights, where the paper has the first two "
    "blocks of Mixtral-8x7B with 8 experts. Embeddings are scaled by sqrt(width) and router kernels by 3, "
    "so that tokens differ in the experts that want them.",
    "The batch has 16 texts of up to 12 tokens (paper: 32 of up to 60). What an expert serves is a config "
    "value, 48 tokens, and does not grow with the padded length: the paper's padding sequence, by which the "
    "attacker sets it, has no counterpart. Blocking texts are cut to the token instead.",
    "Ties are by position in the batch, as torch.topk's on CUDA are for more than 32 numbers; scores are "
    "rounded to five digits, as in the paper.",
    "All 2^(layers x experts) = 256 routing paths are compared, where the paper takes those that differ in "
    "up to 4 of 16 bits from an estimate. The prefix goes as in a local batch with the probe in the "
    "victim's place.",
    "Words are 104 common English ones (paper: 1,000), of which a random part is taken; prompts of the cost "
    "are random letters. Where no query shows a letter, the attacker guesses one and goes on with it.",
    "Experts are tried in turn for each token. For M - 1 - i unknown tokens behind the i-th, M - i "
    "positions are tried (paper: M).",
    "The rules stood before the run with this seed; the attack was tried out on other weights and words.",
)


def _tables(numbers: dict[str, Any]):
    recovery = [
        [layer, f"{found['prompts_right']} of {found['prompts']}", f"{found['right']} of {found['tokens']}",
         str(found["shown"]), f"{found['queries'] / found['tokens']:.0f}", f"{found['chance']:.2g}"]
        for layer, found in numbers["recovery"].items()
    ]  # fmt: skip
    cost = [
        [str(of["length"]), str(of["alphabet"]), f"{of['mean']:.0f}", f"{of['mean'] / of['length']:.0f}",
         f"{of['right']} of {of['tokens']}"]
        for of in numbers["queries"]
    ]  # fmt: skip
    header = ["layer", "words", "letters", "letters that a query showed", "queries a letter", "p of chance"]
    return {
        "Words recovered": (header, recovery),
        "Cost of random prompts": (["M", "V", "queries", "queries a token", "tokens recovered"], cost),
    }


def _draw(figure: Figure, numbers: dict[str, Any]) -> None:
    left, right = figure.subplots(1, 2)
    sizes = numbers["sizes"]
    alphabet = sizes["alphabets"][len(sizes["alphabets"]) // 2]
    length = sizes["lengths"][len(sizes["lengths"]) // 2]
    for of, fixed, name, exponent in (
        ("length", ("alphabet", alphabet), f"prompt length M (V = {alphabet})", 2),
        ("alphabet", ("length", length), f"vocabulary V (M = {length})", 1),
    ):
        points = sorted(
            (row[of], row["mean"], row["all"]) for row in numbers["queries"] if row[fixed[0]] == fixed[1]
        )
        at = np.array([x for x, _, _ in points], float)
        mean = np.array([y for _, y, _ in points])
        (line,) = left.loglog(at, mean, "o-", label=name)
        left.loglog(
            at, mean[-1] * (at / at[-1]) ** exponent, ":", color=line.get_color(), label=f"slope {exponent}"
        )
        for x, _, each in points:
            left.loglog([x] * len(each), each, ".", color=line.get_color(), alpha=0.4)
    at = sorted({*sizes["lengths"], *sizes["alphabets"]})
    left.set_xticks(at, [str(x) for x in at])
    left.set_xticks([], minor=True)
    left.set_xlabel("M or V")
    left.set_ylabel("queries a prompt")
    left.legend(fontsize=8)
    layers = list(numbers["recovery"])
    shares = [found["right"] / found["tokens"] for found in numbers["recovery"].values()]
    right.bar(range(len(layers)), shares, color=["C3", *["C0"] * len(DEFENSES)])
    right.axhline(1 / len(LETTERS), color="0.3", ls="--", label=f"chance, 1 in {len(LETTERS)}")
    right.set_xticks(range(len(layers)), layers, rotation=20, ha="right")
    right.set_ylabel("letters recovered")
    right.legend(fontsize=8)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
