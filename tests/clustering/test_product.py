import numpy as np
import pytest

from clustering import product

QUANTIZER = product.Product(
    np.array([[[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [[5.0, 5.0], [6.0, 5.0], [5.0, 6.0]]], np.float32)
)


def test_each_part_has_its_nearest_centroid():
    x_ND = np.array([[0.9, 0.1, 5.0, 5.9], [0.5, 0.0, 5.0, 5.0]], np.float32)
    codes_NM = QUANTIZER.encode(x_ND)
    assert codes_NM.dtype == np.int32
    assert codes_NM.tolist() == [[1, 2], [0, 0]]  # 0.5 is as near to 0 as to 1
    assert QUANTIZER.decode(codes_NM).tolist() == [[1, 0, 5, 6], [0, 0, 5, 5]]
    assert QUANTIZER.error(x_ND) == pytest.approx((0.01 * 3 + 0.25) / 2)


def test_no_other_codes_are_nearer(mixture):
    x_ND = mixture(300)
    quantizer = product.fit(x_ND, 4, 8, seed=1)
    assert quantizer.codebooks_MKC.shape == (4, 8, 2)
    codes_NM = quantizer.encode(x_ND)
    parts_NMC = x_ND.reshape(300, 4, 2)
    squared_NMK = np.square(parts_NMC[:, :, None] - quantizer.codebooks_MKC[None]).sum(axis=3)
    assert codes_NM.tolist() == squared_NMK.argmin(axis=2).tolist()
    assert quantizer.error(x_ND) == pytest.approx(squared_NMK.min(axis=2).sum(axis=1).mean(), rel=1e-5)
    # Each codebook is at rest, or near it: means of its parts leave hardly less.
    for part in range(4):
        kept = parts_NMC[:, part] - quantizer.codebooks_MKC[part][codes_NM[:, part]]
        means_KC = np.stack([kept[codes_NM[:, part] == k].mean(axis=0) for k in range(8)])
        assert np.abs(means_KC).max() < 0.2


def test_in_blocks(mixture):
    x_ND = mixture(300)
    quantizer = product.fit(x_ND, 4, 8)
    in_blocks = product.fit([x_ND[:9], x_ND[9:]], 4, 8)
    np.testing.assert_array_equal(in_blocks.codebooks_MKC, quantizer.codebooks_MKC)
    assert quantizer.error([x_ND[:9], x_ND[9:]]) == pytest.approx(quantizer.error(x_ND))


@pytest.mark.slow
def test_eight_devices_equal_one(mixture, small_blocks, over_eight):
    x_ND = mixture(300)
    quantizer = product.fit(x_ND, 4, 8)
    spread = product.fit(x_ND, 4, 8, sharding=over_eight)
    np.testing.assert_allclose(spread.codebooks_MKC, quantizer.codebooks_MKC, rtol=1e-4, atol=1e-5)
    codes_NM = quantizer.encode(x_ND)
    np.testing.assert_array_equal(quantizer.encode(x_ND, sharding=over_eight), codes_NM)


def test_a_sample_to_train_on(mixture):
    x_ND = mixture(300)
    few = product.fit(x_ND, 4, 8, sample=8)
    # As many vectors as centroids: each is one of them.
    assert (np.square(few.codebooks_MKC[0][:, None] - x_ND[None, :, :2]).sum(axis=2).min(axis=1) < 1e-9).all()
    assert not np.array_equal(few.codebooks_MKC, product.fit(x_ND, 4, 8, sample=8, seed=1).codebooks_MKC)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(parts=3, k=2), "parts is 3; allowed: divisors of 4"),
        (dict(parts=0, k=2), "parts is 0"),
        (dict(parts=2, k=5), "k is 5; allowed: 1 to 4"),
        (dict(parts=2, k=3, sample=2), "sample is 2; allowed: at least 3"),
    ],
)
def test_numbers_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        product.fit(np.eye(4), **arguments)


def test_bad_vectors_and_codes():
    with pytest.raises(ValueError, match="3 wide; allowed: 4"):
        QUANTIZER.encode(np.eye(3))
    with pytest.raises(ValueError, match="non-finite"):
        QUANTIZER.encode(np.full((1, 4), np.nan))
    with pytest.raises(ValueError, match="0 to 3; allowed: 0 to 2"):
        QUANTIZER.decode(np.array([[0, 3]]))
    with pytest.raises(ValueError, match=r"int64 \(1, 3\); allowed: integers \[vectors, 2\]"):
        QUANTIZER.decode(np.array([[0, 1, 2]]))
