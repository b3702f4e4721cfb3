import numpy as np
import pytest

from training.build import SpecError, build

PEAK = 0.4


def rates(name, steps, **arguments):
    schedule = build(dict(name=f"training.schedules.{name}", peak=PEAK, **arguments))
    return [float(schedule(step)) for step in steps]


def test_warmup_is_a_line_from_zero_and_meets_every_course_at_its_peak():
    courses = {
        "constant": {},
        "linear": dict(total_steps=20),
        "cosine": dict(total_steps=20),
        "rsqrt": {},
    }
    for name, arguments in courses.items():
        assert rates(name, [0, 1, 2, 4], warmup_steps=4, **arguments) == pytest.approx([0.0, 0.1, 0.2, 0.4])


def test_courses_by_hand():
    assert rates("constant", [0, 1_000]) == pytest.approx([0.4, 0.4])
    assert rates("linear", [4, 8, 12, 20, 30], warmup_steps=4, total_steps=20) == pytest.approx(
        [0.4, 0.3, 0.2, 0.0, 0.0]
    )
    assert rates("linear", [0, 10], total_steps=10, end=0.1) == pytest.approx([0.4, 0.1])
    half = 0.4 * (1 + np.cos(np.pi / 4)) / 2
    assert rates("cosine", [4, 8, 12, 20], warmup_steps=4, total_steps=20) == pytest.approx(
        [0.4, half, 0.2, 0.0], abs=1e-7
    )
    assert rates("cosine", [10], total_steps=10, end=0.1) == pytest.approx([0.1])
    # Vaswani et al.: step^-0.5 after the warmup.
    assert rates("rsqrt", [4, 16, 64], warmup_steps=4) == pytest.approx([0.4, 0.2, 0.1])


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("cosine", dict(peak=0.0, total_steps=5), "peak is 0"),
        ("linear", dict(peak=1.0, total_steps=5, warmup_steps=5), "total_steps is 5; it must be above"),
        ("constant", dict(peak=1.0, warmup_steps=-1), "warmup_steps is -1"),
        ("rsqrt", dict(peak=1.0, warmup_steps=0), "warmup_steps is 0"),
    ],
)
def test_bad_settings_are_refused(name, arguments, message):
    with pytest.raises(SpecError, match=message):
        build(dict(name=f"training.schedules.{name}", **arguments))
