import pytest

from training import progress
from training.progress import Progress, clock


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (75, "1:15"), (59.6, "1:00"), (3_725, "1:02:05")])
def test_clock(seconds, text):
    assert clock(seconds) == text


def test_a_line_by_hand():
    # 30 more steps in 10 s: 3 steps/s; 60 are left: 20 s.
    shown = Progress(100, unit="step", title="training", done=10)
    shown.update(40, {"loss": "1.5"})
    assert shown.line(40, 10.0) == "training: 40 of 100 steps (40%), 3 steps/s, loss 1.5, 0:20 left"
    assert "time left unknown" in shown.line(10, 0.0)


def test_a_log_gets_a_line_now_and_then(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 1e9)
    shown = Progress(10, unit="text", title="encoding")
    shown.update(5)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0)
    shown.update(6)
    shown.say("a line")
    shown.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("encoding: 6 of 10 texts (60%)")
    assert lines[1] == "a line"


def test_what_comes_before_the_work_does_not_count(monkeypatch, capsys):
    clock = iter([0.0, 60.0, 70.0])  # made, begun after a minute, ten seconds of work
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    shown = Progress(100, unit="step", title="training")
    shown.begin()
    shown.update(50)
    assert capsys.readouterr().err == "training: 50 of 100 steps (50%), 5 steps/s, 0:10 left\n"
