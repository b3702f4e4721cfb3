"""MaxSim and the loss of a tightly coupled teacher beside slow transcriptions of their formulas."""

import dataclasses
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.dual_encoder import parts
from dual_encoder.late_interaction import max_sim
from dual_encoder.task import documents, queries
from dual_encoder.tightly_coupled import TightlyCoupled
from training.build import build

V, B, H = 30, 3, 1


def test_max_sim_by_loops():
    rng = np.random.default_rng(0)
    q, d = rng.normal(size=(2, 3, 4)).astype(np.float32), rng.normal(size=(3, 5, 4)).astype(np.float32)
    q_mask = np.array([[1, 1, 0], [1, 1, 1]], bool)
    d_mask = np.array([[1, 1, 1, 1, 0], [1, 0, 0, 0, 0], [0] * 5], bool)
    found = max_sim(*map(jnp.asarray, (q, q_mask, d, d_mask)))
    for b in range(2):
        for n in range(3):
            there = [m for m in range(5) if d_mask[n, m]]
            best = [
                max((float(q[b, i] @ d[n, m]) for m in there), default=0.0) for i in range(3) if q_mask[b, i]
            ]
            assert float(found[b, n]) == pytest.approx(sum(best), rel=1e-5, abs=1e-6)
    gradient = jax.grad(lambda q: max_sim(q, *map(jnp.asarray, (q_mask, d, d_mask))).sum())(jnp.asarray(q))
    assert np.isfinite(gradient).all()


@pytest.fixture(scope="module")
def task():
    """The teacher's encoder is a bag, whose one vector a text makes MaxSim a product: it compiles at once."""
    tower = parts.bag_tower(V, 6)
    base = parts.contrastive({"name": "dual_encoder.towers.tied", "tower": tower})
    base |= {"objective": {"name": "dual_encoder.objectives.softmax.info_nce"}, "measures": {}}
    teacher = {
        "name": "dual_encoder.late_interaction.LateInteraction",
        "encoder": tower["encoder"],
        "width": 5,
    }
    return build(
        {
            "name": "dual_encoder.tightly_coupled.TightlyCoupled",
            "base": base,
            "teacher": teacher,
            "contrastive_weight": 0.3,
            "teacher_weight": 0.5,
            "teacher_temperature": 0.2,
        }
    )


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(1)

    def texts(*shape):
        mask = np.arange(4) < rng.integers(1, 5, (*shape, 1))
        return {"tokens": rng.integers(0, V, mask.shape), "mask": mask, "segments": np.zeros(mask.shape)}

    made = {f"query_{name}": x for name, x in texts(B).items()}
    made |= {f"document_{name}": x for name, x in texts(B, 1 + H).items()}
    made["document_rows"] = np.array([[0, 3], [1, 0], [2, -1]])
    made["positives"] = np.array([[0, -1], [1, 2], [2, -1]])
    return {name: jnp.asarray(x, jnp.int32) for name, x in made.items()}


@pytest.fixture(scope="module")
def computed(task, batch):
    """All that is compiled, at once: the loss, both sides' vectors, the teacher's scores, a gradient."""
    alone = dataclasses.replace(task, teacher_weight=0.0)

    def compute():
        key = jax.random.key(1)
        params, state = task.init(key, batch)
        sides = queries(batch), documents(batch)
        loss, (_, metrics) = task.loss(params, state, batch, key, train=False)
        vectors = task.model.apply(task.variables(params, state), *sides)
        teacher = task.teacher.apply({"params": params["teacher"]}, *sides)
        gradient = jax.grad(lambda p: alone.loss(p, state, batch, key, train=True)[0])(params)
        return loss, metrics, vectors, teacher, task.base.current_temperature(params), gradient

    return jax.device_get(jax.jit(compute)())


def test_the_loss_is_its_formula(batch, computed):
    loss, metrics, (q, d), teacher, temperature, _ = computed
    student, teacher = q @ d.T / float(temperature), teacher / 0.2
    rows, relevant = np.asarray(batch["document_rows"]).reshape(-1), np.asarray(batch["positives"])
    entropy = divergence = own = 0.0
    for b in range(B):
        label = b * (1 + H)
        columns = [n for n in range(len(rows)) if n == label or (rows[n] >= 0 and rows[n] not in relevant[b])]

        def softmax(s, columns=columns):
            return {n: math.exp(s[n]) / sum(math.exp(s[m]) for m in columns) for n in columns}

        p_student, p_teacher = softmax(student[b]), softmax(teacher[b])
        entropy -= math.log(p_student[label]) / B
        own -= math.log(p_teacher[label]) / B
        divergence += sum(p * math.log(p / p_student[n]) for n, p in p_teacher.items()) / B
    assert float(metrics["distillation"]) == pytest.approx(divergence, rel=1e-4)
    assert float(loss) == pytest.approx(0.3 * entropy + 0.7 * divergence + 0.5 * own, rel=1e-4)


def test_the_student_gives_the_teacher_no_gradient(computed):
    gradient = computed[-1]
    assert not any(np.any(x) for x in jax.tree.leaves(gradient["teacher"]))
    assert any(np.any(x) for x in jax.tree.leaves(gradient["model"]))


def test_a_teacher_that_does_not_learn_has_no_dropout_and_no_gradient(task, batch):
    trained = []

    def apply(variables, queries, documents, *, train, rngs):
        trained.append(train)
        # The slope is infinite at 0, and even 0 times that is no number.
        return jnp.sqrt(variables["params"]) * jnp.ones((B, B * (1 + H)))

    params, state = task.base.init(jax.random.key(0), batch)

    def slope(weight):
        of = dataclasses.replace(task, teacher=types.SimpleNamespace(apply=apply), teacher_weight=weight)
        loss = lambda teacher: of.loss(
            {**params, "teacher": teacher}, state, batch, jax.random.key(1), train=True
        )[0]
        return jax.jit(jax.grad(loss))(0.0)

    assert slope(0.0) == 0
    assert trained == [False]


@pytest.mark.parametrize(
    ("field", "value"), [("contrastive_weight", 1.5), ("teacher_weight", -1.0), ("teacher_temperature", 0.0)]
)
def test_numbers_are_checked(task, field, value):
    with pytest.raises(ValueError, match=f"{field} is {value}"):
        TightlyCoupled(task.base, task.teacher, **{field: value})
