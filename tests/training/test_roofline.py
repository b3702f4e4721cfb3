"""The three roofs on numbers worked by hand, and the links that a group can send over."""

import doctest

import pytest

from training import collectives, roofline
from training.chips import Chip, Links
from training.collectives import Collective

# A torus of 4 x 4 chips whose dimensions are rings; 10 bytes/s a link, 1 byte/s a chip between slices.
LINKS = Links(link_bandwidth=10.0, dimensions=2, ring=4, dcn_bandwidth=1.0)
CHIP = Chip("toy", "toy", peak_flops=1e3, hbm_bytes=10**6, hbm_bandwidth=100.0, links=LINKS)
TORUS = (4, 4)
PLACES = [(s, x, y) for s in range(2) for x in range(4) for y in range(4)]  # two slices
ROW = (0, 1, 2, 3)
COLUMN = (0, 4, 8, 12)


def one(kind, members, operand, axes=("data",)):
    return Collective(kind, axes, members, operand, collectives.sent(kind, operand, len(members)))


def seconds(collective, torus=TORUS, places=PLACES, links=LINKS):
    return roofline.collective_seconds(collective, links, places, torus)


def test_the_largest_of_three_bounds_the_step():
    gather = one("all-gather", ROW, 100)  # 300 bytes over two links of 10: 15 s
    found = roofline.roofline(
        CHIP, matmul_flops=4e3, hbm_bytes=700.0, sent={gather: 2}, places=PLACES, torus=TORUS
    )
    assert (found.compute, found.memory, found.interconnect) == (4.0, 7.0, 30.0)
    assert (found.seconds, found.bound) == (30.0, "interconnect")
    found = roofline.roofline(CHIP, matmul_flops=8e3, hbm_bytes=700.0, sent={}, places=PLACES, torus=TORUS)
    assert (found.seconds, found.bound) == (8.0, "compute")


def test_utilization_leaves_out_what_is_computed_again():
    # 4 products forward and backward, one of them again: 3/4 where compute is the bound.
    assert roofline.model_flops_utilization(3e3 * 16, 16, 1e3, seconds=4.0) == 0.75


@pytest.mark.parametrize(
    ("members", "links"),
    [
        (ROW, 2),  # a ring
        (COLUMN, 2),
        (tuple(range(16)), 4),  # two rings
        ((0, 1), 1),  # a part of a ring is a line
        ((0, 1, 4, 5), 2),  # two lines
        ((0, 1, 2, 3, 4, 5, 6, 7), 3),  # a ring and a line
    ],
)
def test_links_of_a_group(members, links):
    sent = collectives.sent("all-reduce", 100, len(members))
    assert seconds(one("all-reduce", members, 100)) == pytest.approx(sent / (10 * links))


def test_a_slice_too_short_for_rings_has_lines():
    small = [(0, x, y) for x in range(2) for y in range(2)]
    assert seconds(one("all-gather", (0, 1, 2, 3), 10), (2, 2), small) == pytest.approx(30 / 20)


def test_a_message_goes_over_one_link():
    assert seconds(one("collective-permute", (0, 1), 50)) == 5.0
    assert seconds(one("send", (0, 16), 50)) == 50.0  # into the other slice


def test_over_slices_each_chip_sends_its_share():
    everyone = tuple(range(32))
    # Within a slice 2 (15/16) 160 bytes over 4 links; then 2 (1/2) of the 10 bytes that are this chip's.
    assert seconds(one("all-reduce", everyone, 160)) == pytest.approx(300 / 40 + 10 / 1)
    # A gather brings each chip the other slice's part of its place, then both within the slice.
    assert seconds(one("all-gather", everyone, 8)) == pytest.approx(8 / 1 + 15 * 16 / 40)
    assert seconds(one("all-reduce", (0, 16), 8)) == pytest.approx(8.0)


@pytest.mark.parametrize(
    ("members", "operand", "expected"),
    [
        # A ring of 4: halves of 2 swap 2 x 2 / 4 x 80 bytes over 2 links of 10; sending 60 over 2 takes 3.
        (ROW, 80, 80 / 20),
        # A line of 2: 1 x 1 / 2 x 80 bytes over 1 link, as long as to send them.
        ((0, 1), 80, 40 / 10),
        # 4 x 4: 8 x 8 / 16 x 80 bytes over 4 rings cut twice.
        (tuple(range(16)), 80, 320 / 80),
        # 2 x 4, a line and a ring: across the line 4 x 4 / 8 x 80 over 4 links, across the ring over 2 x 2.
        ((0, 1, 2, 3, 4, 5, 6, 7), 80, 160 / 40),
    ],
)
def test_an_all_to_all_crosses_the_middle(members, operand, expected):
    assert seconds(one("all-to-all", members, operand)) == pytest.approx(expected)
    assert seconds(one("ragged-all-to-all", members, operand)) == pytest.approx(expected)


def test_of_three_on_a_line_one_is_cut_off():
    line = [(0, x, 0) for x in range(3)]
    # 1 x 2 / 3 x 30 bytes over one link.
    assert roofline.crossing_seconds(30, [place[1:] for place in line], LINKS, (3, 1)) == pytest.approx(2.0)
    # 8 x 4 x 4 of a slice whose rings are of 4: 64 x 64 / 128 x 10 bytes, over 16 rings cut twice.
    box = [(x, y, z) for x in range(8) for y in range(4) for z in range(4)]
    assert roofline.crossing_seconds(10, box, LINKS, (8, 4, 4)) == pytest.approx(320 / 320)


def test_a_chip_without_memory_or_links_is_refused():
    with pytest.raises(ValueError, match="chip bare has no memory or links"):
        roofline.roofline(
            Chip("bare", "bare", 1.0), matmul_flops=1, hbm_bytes=1, sent={}, places=PLACES, torus=TORUS
        )


def test_examples_in_docstrings():
    assert doctest.testmod(roofline).failed == 0
    assert roofline.bytes_for_people(3 * 2**40) == "3 TiB"
    assert roofline.bytes_for_people(0) == "0 B"
