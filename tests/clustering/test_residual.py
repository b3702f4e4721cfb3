import dataclasses
import itertools

import numpy as np
import pytest

from clustering import residual


def greedy(codebooks_MKD, x_ND):
    """The oracle: the nearest of each step, in float64."""
    left_ND, codes = x_ND.astype(float), []
    for codebook_KD in codebooks_MKD:
        codes.append(np.square(left_ND[:, None] - codebook_KD[None]).sum(axis=2).argmin(axis=1))
        left_ND = left_ND - codebook_KD[codes[-1]]
    return np.stack(codes, axis=1), np.square(left_ND).sum(axis=1)


def test_a_beam_finds_a_sum_that_the_nearest_steps_miss():
    # 5.9 is nearer to 4 than to 8. 4 leaves 1.9, and 4 + 1 leaves 0.9; but 8 - 2 leaves -0.1.
    codebooks_MKD = np.array([[[4.0], [8.0]], [[1.0], [-2.0]]], np.float32)
    x_ND = np.array([[5.9]], np.float32)
    assert residual.Residual(codebooks_MKD).encode(x_ND).tolist() == [[0, 0]]
    assert residual.Residual(codebooks_MKD, beam=2).encode(x_ND).tolist() == [[1, 1]]
    assert residual.Residual(codebooks_MKD).decode(np.array([[1, 1], [0, 0]])).tolist() == [[6], [5]]
    assert residual.Residual(codebooks_MKD).error(x_ND) == pytest.approx(0.9**2, rel=1e-4)


def test_without_a_beam_each_step_takes_the_nearest(mixture):
    x_ND = mixture(300)
    quantizer = residual.fit(x_ND, 2, 8, seed=1)
    assert quantizer.codebooks_MKD.shape == (2, 8, 8)
    codes_NM, squared_N = greedy(quantizer.codebooks_MKD, x_ND)
    found_NM = quantizer.encode(x_ND)
    assert found_NM.dtype == np.int32
    assert found_NM.tolist() == codes_NM.tolist()
    assert quantizer.error(x_ND) == pytest.approx(squared_N.mean(), rel=1e-5)
    np.testing.assert_allclose(np.square(x_ND - quantizer.decode(found_NM)).sum(axis=1), squared_N, rtol=1e-3)
    # Each step lowers what is left.
    errors = [residual.Residual(quantizer.codebooks_MKD[:steps]).error(x_ND) for steps in (1, 2)]
    assert errors[1] < 0.8 * errors[0]


def test_a_beam_as_wide_as_all_sums_finds_the_nearest(mixture):
    x_ND = mixture(300)
    quantizer = residual.fit(x_ND, 2, 8, beam=8)
    errors = [dataclasses.replace(quantizer, beam=beam).error(x_ND) for beam in (1, 8)]
    all_codes = np.array(list(itertools.product(range(8), repeat=2)))
    sums_RD = quantizer.decode(all_codes).astype(float)
    squared_NR = np.square(x_ND[:, None] - sums_RD[None]).sum(axis=2)
    assert errors[1] == pytest.approx(squared_NR.min(axis=1).mean(), rel=1e-5)
    assert errors[1] < errors[0]


@pytest.mark.slow
def test_training_with_a_beam_pays(mixture):
    x_ND = mixture(300)
    assert residual.fit(x_ND, 3, 8, beam=4).error(x_ND) < residual.fit(x_ND, 3, 8).error(x_ND)


def test_in_blocks(mixture):
    x_ND = mixture(300)
    quantizer = residual.fit(x_ND, 2, 8, seed=1)
    in_blocks = residual.fit([x_ND[:9], x_ND[9:]], 2, 8, seed=1)
    np.testing.assert_array_equal(in_blocks.codebooks_MKD, quantizer.codebooks_MKD)
    np.testing.assert_array_equal(in_blocks.encode([x_ND[:9], x_ND[9:]]), quantizer.encode(x_ND))
    other = residual.fit(x_ND, 2, 8, seed=2)
    assert not np.array_equal(other.codebooks_MKD, quantizer.codebooks_MKD)


@pytest.mark.slow
def test_eight_devices_equal_one(mixture, small_blocks, over_eight):
    x_ND = mixture(300)
    quantizer = residual.fit(x_ND, 3, 8, beam=2)
    spread = residual.fit(x_ND, 3, 8, beam=2, sharding=over_eight)
    np.testing.assert_allclose(spread.codebooks_MKD, quantizer.codebooks_MKD, rtol=1e-4, atol=1e-4)
    codes_NM = quantizer.encode(x_ND)
    np.testing.assert_array_equal(quantizer.encode(x_ND, sharding=over_eight), codes_NM)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(steps=0, k=2), "steps is 0"),
        (dict(steps=2, k=2, beam=0), "beam is 0"),
        (dict(steps=2, k=5), "k is 5; allowed: 1 to 4"),
        (dict(steps=2, k=3, sample=2), "sample is 2; allowed: at least 3"),
    ],
)
def test_numbers_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        residual.fit(np.eye(4), **arguments)


def test_bad_vectors_and_codes():
    quantizer = residual.Residual(np.ones((2, 3, 4), np.float32))
    with pytest.raises(ValueError, match="3 wide; allowed: 4"):
        quantizer.encode(np.eye(3))
    with pytest.raises(ValueError, match="non-finite"):
        quantizer.encode(np.full((1, 4), np.inf))
    with pytest.raises(ValueError, match="0 to 3; allowed: 0 to 2"):
        quantizer.decode(np.array([[0, 3]]))
