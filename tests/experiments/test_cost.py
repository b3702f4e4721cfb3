"""What the program says a config costs; the formulas are held in tests/moe/test_cost.py."""

import json

import pytest

from configs.dual_encoder import mixture
from configs.generative_retrieval import medquad, query_generator
from configs.language_model import corpora
from configs.pod import moe_deepseek, moe_olmoe
from experiments import cost, planning
from experiments.cli import UsageError


def dense():
    return corpora.get_config("width=64,layers=2,length=16,batch=4").to_dict()


def sparse():
    config = dense()
    config["task"]["model"]["block"]["feed_forward"] = dict(
        name="moe.mixture.Mixture",
        router=dict(name="moe.routers.TopK", num_experts=4, k=1),
        experts=dict(name="moe.experts.Gated", width=32),
        dispatcher=dict(name="moe.dropless.Dropless"),
    )
    config["task"]["auxiliary"] = dict(
        name="moe.auxiliary.Auxiliary",
        losses=dict(balance=dict(name="moe.balance.load_balancing")),
        weights=dict(balance=0.01),
    )
    return config


def test_a_dense_config():
    found = cost.of(dense())
    parameters = found["parameters"]
    # Table, last norm; attention, SwiGLU of 170 and two norms in each layer.
    assert parameters["total"] == 4096 * 64 + 64 + 2 * (4 * 64**2 + 3 * 64 * 170 + 2 * 64)
    assert parameters["active"] == parameters["total"]
    assert found["checkpoint_bytes"]["parameters"] == 4 * parameters["total"]
    # Adam keeps two moments of each, and counts its steps twice.
    assert found["checkpoint_bytes"]["optimizer"] == 8 * parameters["total"] + 8
    assert found["checkpoint_bytes"]["average"] == found["checkpoint_bytes"]["state"] == 0
    assert found["tokens_of_a_batch"] == 4 * 16
    forward, both = (found["flops_per_token"][name] for name in ("forward", "forward_and_backward"))
    products = 2 * (parameters["total"] - 5 * 64) + 2 * 2 * 2 * 16 * 64  # scores and sums of attention
    assert forward["matmul"] == products
    assert both["matmul"] == 3 * products  # with respect to both factors
    assert both["recomputed"] == 0
    assert found["layers"] == []
    assert found["not_counted"] == []
    assert not [line for line in cost.lines(found) if "sparse" in line or "all-to-all" in line]


def test_a_sparse_config():
    config = sparse()
    config["schedule"]["average_decay"] = 0.99
    found = json.loads(json.dumps(cost.of(config)))
    experts = found["parameters"]["by_kind"]["experts"]
    assert experts == {"total": 2 * 4 * 3 * 64 * 32, "active": 2 * 3 * 64 * 32}
    assert found["checkpoint_bytes"]["average"] == found["checkpoint_bytes"]["parameters"]
    assert found["not_counted"] == []
    (layer,) = found["layers"]
    assert (layer["copies"], layer["edges"], layer["devices"]) == (2, 64, 1)
    # 64 rows of 64 floats are read and written; back likewise; 4 experts.
    assert layer["device"] == {
        "dispatch": 2 * 64 * 256, "combine": 2 * 64 * 256, "weights": 4 * 4 * 3 * 64 * 32, "exchange": 0,
        "sent": 0,
    }  # fmt: skip
    text = "\n".join(cost.lines(found))
    assert "| experts   |     49,152 |             12,288 |" in text
    assert "block/feed_forward" in text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "positions"),
    [(medquad, 16 + 13), (query_generator, 48 + 32)],  # a text and a title's symbols; a document and a query
)
def test_configs_of_generative_retrieval(module, positions):
    config = module.get_config("width=64,layers=1,steps=9,batch=4").to_dict()
    found = cost.of(config)
    assert found["tokens_of_a_batch"] == 4 * positions
    assert found["flops_per_token"]["forward"]["matmul"] > 0
    assert found["not_counted"] == []


def test_the_batch_of_a_query_generator():
    config = query_generator.get_config("batch=4,length=20").to_dict()
    planning.check_fields(config)
    read, written = dict.fromkeys(("tokens", "mask", "segments"), (4, 20)), (4, 32)
    assert planning.batch_shapes(config) == {**read, "targets": written, "target_mask": written}


def test_a_config_without_a_family_is_refused():
    with pytest.raises(UsageError, match=r"config.family is 'x'; allowed: experiments\."):
        cost.of(dense() | dict(family="x"))


@pytest.mark.tpu_plan
@pytest.mark.parametrize(
    ("config", "topology", "milliseconds"),
    [
        # 32 x 32 / 64 of an operand cross 16 rings cut twice, at 100 GB/s a link.
        (moe_olmoe, "v5p:4x4x4", 16 * 16 * 64 * 320 * 2048 * 2 / (32 * 100e9) * 1e3),
        # The 16 chips along `expert` are a ring: 8 x 8 / 16 of an operand, two links of 50 GB/s.
        (moe_deepseek, "v5e:16x16", 4 * 4 * 64 * 240 * 2048 * 2 / (2 * 50e9) * 1e3),
    ],
)
def test_the_time_of_an_all_to_all(config, topology, milliseconds, tpu_devices):
    del tpu_devices
    found = cost.of(config.get_config().to_dict(), topology)
    assert found["layers"][0]["exchange_seconds"] * 1e3 == pytest.approx(milliseconds)
    assert f"{milliseconds:.3g} ms" in cost.lines(found)[-3]


@pytest.mark.slow
def test_a_batch_in_chunks_moves_what_it_moves_in_one_piece():
    config = mixture.get_config("folder=,batch=8").to_dict()
    whole = cost.of(config)["layers"]
    config["task"]["chunks"] = 2
    assert cost.of(config)["layers"] == whole
