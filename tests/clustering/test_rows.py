import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clustering import rows as reading
from clustering.rows import Rows

VECTORS_ND = np.arange(30, dtype=np.float32).reshape(10, 3)


@pytest.fixture(params=["array", "float64", "jax", "memmap", "blocks", "rows"])
def rows(request, tmp_path):
    if request.param == "memmap":
        np.save(tmp_path / "vectors.npy", VECTORS_ND)
        return Rows(np.load(tmp_path / "vectors.npy", mmap_mode="r"))
    return Rows(
        {
            "array": VECTORS_ND,
            "float64": VECTORS_ND.astype(np.float64),
            "jax": jnp.asarray(VECTORS_ND),
            "blocks": [VECTORS_ND[:1], VECTORS_ND[1:6], VECTORS_ND[6:]],
            "rows": Rows(VECTORS_ND),
        }[request.param]
    )


def test_reads_the_same_however_the_vectors_come(rows):
    assert (len(rows), rows.width) == (10, 3)
    assert rows.read(2, 20).dtype == np.float32
    np.testing.assert_array_equal(rows.read(0, 7), VECTORS_ND[:7])
    np.testing.assert_array_equal(rows.read(5, 20), VECTORS_ND[5:])
    np.testing.assert_array_equal(rows.take(np.array([7, 0, 7, 3])), VECTORS_ND[[7, 0, 7, 3]])
    part = rows.subset(np.array([9, 4, 1])).subset(np.array([2, 0]))
    assert len(part) == 2
    np.testing.assert_array_equal(part.read(0, 2), VECTORS_ND[[1, 9]])
    blocks = list(rows.blocks(4))
    assert [count for _, count in blocks] == [4, 4, 2]
    whole = np.concatenate([np.asarray(block) for block, _ in blocks])
    np.testing.assert_array_equal(whole, np.concatenate([VECTORS_ND, np.zeros((2, 3))]))


def test_a_sample_is_of_distinct_rows_in_order_and_of_the_seed():
    rows = Rows(VECTORS_ND)
    drawn = [rows.sample(6, reading.generator(seed))[:, 0] for seed in (0, 0, 1)]
    assert (np.diff(drawn[0]) > 0).all()
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert drawn[0].tolist() != drawn[2].tolist()
    np.testing.assert_array_equal(rows.sample(11, reading.generator(0)), VECTORS_ND)


def test_block_size_is_a_power_of_two_of_each_device(over_eight):
    assert reading.block_size(100_000, 10, None) == 1 << 14
    assert reading.block_size(300, 10, None) == 512
    assert reading.block_size(100_000, 1 << 14, None) == 256
    assert reading.block_size(100_000, 1 << 20, None) == 256
    assert reading.block_size(20, 10, over_eight) == 8 * 4


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.zeros(3, np.float32), r"shape \(3,\); \[rows, width\]"),
        (np.zeros((0, 3), np.float32), r"shape \(0, 3\)"),
        (np.zeros((2, 3), int), "dtype int64; floating point"),
        ([], "empty sequence"),
        ([np.zeros((2, 3)), np.zeros((2, 4))], r"blocks are \[3, 4\] wide"),
    ],
)
def test_malformed_vectors(vectors, message):
    with pytest.raises(ValueError, match=message):
        Rows(vectors)


def test_check_count_names_field_and_range():
    with pytest.raises(ValueError, match="k is 0; allowed: at least 1"):
        reading.check_count("k", 0)
    with pytest.raises(ValueError, match="k is 9; allowed: 1 to 8"):
        reading.check_count("k", 9, 1, 8)


def test_seeds_are_numbers_or_keys():
    assert reading.seed_numbers(3) == (3,)
    assert reading.seed_numbers((3, 4)) == (3, 4)
    key = jax.random.key(5)
    assert reading.seed_numbers(key) == tuple(np.asarray(jax.random.key_data(key)).tolist())
    drawn = [reading.generator(*seeds).random() for seeds in ((3, 4), ((3, 4),), (4, 3))]
    assert drawn[0] == drawn[1] != drawn[2]
    with pytest.raises(ValueError, match="seed is -1; allowed: 0 or more"):
        reading.seed_numbers(-1)
