"""The least time that a step can take: what it computes, moves and sends, each at the chip's full rate.

Williams et al. (2009), "Roofline: An Insightful Visual Performance Model for Multicore Architectures", with
the interconnect as a third roof. The three are taken to overlap wholly, so the step takes the largest of
them; the collectives of a step are taken to follow one another. It is a bound from the program and the data
sheet: no measurement, and a real step takes longer.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from training import collectives
from training.chips import Chip, Links
from training.collectives import Collective

Place = tuple[int, ...]  # slice, then coordinates in its torus


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Attributes:
    compute, memory, interconnect: seconds.
    """

    compute: float
    memory: float
    interconnect: float

    @property
    def seconds(self) -> float:
        """The largest of the three."""
        return max(dataclasses.astuple(self))

    @property
    def bound(self) -> str:
        """Which is the largest."""
        return max(dataclasses.asdict(self), key=lambda name: getattr(self, name))


def roofline(
    chip: Chip,
    *,
    matmul_flops: float,
    hbm_bytes: float,
    sent: Mapping[Collective, float],
    places: Sequence[Place],
    torus: Sequence[int],
) -> Roofline:
    """Returns the three times of one step.

    Args:
      chip: with memory and links.
      matmul_flops: products of one chip, those that it computes again too; other operations run beside them.
      hbm_bytes: that one chip reads and writes, see `training.traffic`.
      sent: how often each collective runs.
      places: where each device of the mesh (flat) stands.
      torus: sizes of a slice.

    Raises:
      ValueError: the table of chips has no memory or links for this one.
    """
    if chip.hbm_bandwidth is None or chip.links is None:
        raise ValueError(f"chip {chip.name} has no memory or links in training.chips")
    return Roofline(
        compute=matmul_flops / chip.peak_flops,
        memory=hbm_bytes / chip.hbm_bandwidth,
        interconnect=sum(
            times * collective_seconds(one, chip.links, places, torus) for one, times in sent.items()
        ),
    )


def model_flops_utilization(model_flops: float, chips: int, peak_flops: float, seconds: float) -> float:
    """Returns the share of the peak that the model's own products are, without those computed again.

    Chowdhery et al. (2022), "PaLM: Scaling Language Modeling with Pathways". At a roofline's time it is the
    best possible one.

    Args:
      model_flops: of all chips, `matmul - recomputed` of `training.flops.Flops`.
      chips: how many.
      peak_flops: of one.
      seconds: that a step takes.

    >>> model_flops_utilization(model_flops=4e15, chips=10, peak_flops=1e14, seconds=8.0)
    0.5
    """
    return model_flops / (chips * peak_flops * seconds)


def collective_seconds(one: Collective, links: Links, places: Sequence[Place], torus: Sequence[int]) -> float:
    """Returns the least time of a collective.

    A message from one device to another goes over one link. A group sends over the links of every dimension
    of the torus in which its members differ: two, both ways round, where they fill a dimension that closes to
    a ring; one on a line. A group that spans slices first does its part within each, and each chip then sends
    its share of the rest over the data-center network.

    An all-to-all takes at least as long as what crosses from one half of the group to the other needs on the
    links between the halves, see `crossing_seconds`.
    """
    members = [places[member] for member in one.members]
    slices = len({place[0] for place in members})
    if one.kind in ("collective-permute", "send"):
        return one.sent_bytes / (links.dcn_bandwidth if slices > 1 else links.link_bandwidth)
    inside = [place[1:] for place in members if place[0] == members[0][0]]
    gathers = one.kind == "all-gather"
    seconds = 0.0
    if slices > 1:
        share = one.operand_bytes if gathers else one.operand_bytes / len(inside)
        seconds += collectives.sent(one.kind, share, slices) / links.dcn_bandwidth
    if len(inside) > 1:
        size = one.operand_bytes * (slices if gathers else 1)
        rate = links.link_bandwidth * _links(inside, links, torus)
        within = collectives.sent(one.kind, size, len(inside)) / rate
        if one.kind in ("all-to-all", "ragged-all-to-all"):
            within = max(within, crossing_seconds(size, inside, links, torus))
        seconds += within
    return seconds


def crossing_seconds(
    operand_bytes: float, members: Sequence[Place], links: Links, torus: Sequence[int]
) -> float:
    """Returns the least time of an all-to-all by bisection bandwidth.

    Of n chips, cut into l and n - l across a dimension of the torus, each sends an n-th of its operand to
    each other one, so that

        l (n - l) / n operand_bytes

    cross the cut either way, over n / e links one way for e chips in that dimension, and over twice as many
    where they fill one that closes to a ring. The slowest dimension counts. The group is taken as a box of
    neighbors whose links no other group uses.

    Args:
      operand_bytes: of a chip.
      members: where the chips of the group stand in the torus of one slice.
      links, torus: as in `collective_seconds`.
    """
    chips, slowest = len(members), 0.0
    for axis, size in enumerate(torus):
        extent = len({place[axis] for place in members})
        if extent > 1:
            low = chips * (extent // 2) // extent
            crossing = low * (chips - low) / chips * operand_bytes
            across = chips / extent * _ways(extent, size, links)
            slowest = max(slowest, crossing / (across * links.link_bandwidth))
    return slowest


def _links(members: Sequence[Place], links: Links, torus: Sequence[int]) -> int:
    """How many links a device of the group sends over."""
    extents = [len({place[axis] for place in members}) for axis in range(len(torus))]
    used = [_ways(extent, size, links) for extent, size in zip(extents, torus, strict=True) if extent > 1]
    return max(1, sum(used))


def _ways(extent: int, size: int, links: Links) -> int:
    """Two where chips fill a dimension of the torus that closes to a ring; one on a line."""
    return 2 if extent == size and size % links.ring == 0 else 1


def torus_of(places: Sequence[Place]) -> tuple[int, ...]:
    """Returns the sizes of the torus of one slice.

    >>> torus_of([(0, 0, 0), (0, 1, 0), (1, 0, 0), (1, 1, 0)])
    (2, 1)
    """
    return tuple(len({place[axis] for place in places}) for axis in range(1, len(places[0])))


def bytes_for_people(number: float) -> str:
    """Returns a size such as 2.14 GiB.

    >>> bytes_for_people(2_300_000_000), bytes_for_people(512)
    ('2.14 GiB', '512 B')
    """
    power = min(4, max(0, int(math.log2(max(number, 1)) // 10)))
    unit = ("B", "KiB", "MiB", "GiB", "TiB")[power]
    return f"{number / 1024**power:.0f} B" if not power else f"{number / 1024**power:.3g} {unit}"
