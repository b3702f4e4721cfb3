import jax.numpy as jnp
import numpy as np
import pytest

from experiments import checkpoints as program
from training.checkpoints import Checkpoints
from training.tables import Tables
from training.task import TrainState


@pytest.fixture
def run_dir(tmp_path):
    """Checkpoints of steps 1 to 3, the best of step 2, and two tables of which step 3 names one."""
    saved = Checkpoints(tmp_path / "run" / "checkpoints", keep=3)
    tables = Tables(tmp_path / "run", {}, {})
    for step in (1, 2, 3):
        state = TrainState(jnp.int32(step), {"w": jnp.full(3, float(step))}, {}, ())
        if step > 1:
            tables.replace(step, {"negatives": np.full(2, step)}, keep=saved.positions())
        saved.save(state, {"tables": dict(tables.in_use)})
        if step == 2:
            saved.save_best(state, 0.25)
    saved.close()
    np.save(tmp_path / "run" / "tables" / "negatives.npy", np.zeros(2))
    return tmp_path / "run"


def call(monkeypatch, *arguments):
    """Runs the program and returns its exit status."""
    monkeypatch.setattr("sys.argv", ["checkpoints", *map(str, arguments)])
    try:
        program.main()
    except SystemExit as end:
        return end.code or 0
    return 0


def truncate(run_dir, checkpoint):
    digests = run_dir / "checkpoints" / checkpoint / "digests.json"
    digests.write_text(digests.read_text()[:50])


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_list(run_dir, monkeypatch, capsys):
    assert call(monkeypatch, "list", run_dir) == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    places = [line.split("|")[1].strip().removeprefix(f"{run_dir}/checkpoints/") for line in lines]
    assert places == ["best/2", "latest/3", "latest/2", "latest/1"]
    assert "value 0.2500" in lines[0]
    assert "value" not in lines[1]


def test_verify_names_what_is_damaged_and_ends_with_status_1(run_dir, monkeypatch, capsys):
    assert call(monkeypatch, "verify", run_dir) == 0
    assert capsys.readouterr().out.count("sound") == 4
    truncate(run_dir, "latest/2")
    assert call(monkeypatch, "verify", run_dir) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if not line.endswith("sound")]
    assert line.startswith(f"{run_dir}/checkpoints/latest/2: digests.json or _CHECKPOINT_METADATA cannot be")


def test_prune_keeps_the_newest_sound_ones_the_best_and_their_tables(run_dir, monkeypatch, capsys):
    truncate(run_dir, "latest/3")
    assert call(monkeypatch, "prune", run_dir, "--dry_run") == 0
    assert capsys.readouterr().out.count("would delete") == 3
    assert names(run_dir / "checkpoints" / "latest") == ["1", "2", "3"]
    assert call(monkeypatch, "prune", run_dir) == 0
    assert names(run_dir / "checkpoints" / "latest") == ["2"]
    assert names(run_dir / "checkpoints" / "best") == ["2"]
    assert names(run_dir / "tables") == ["negatives-2.npy", "negatives.npy"]
    assert call(monkeypatch, "prune", run_dir) == 0
    assert "nothing to delete" in capsys.readouterr().out


def test_prune_deletes_nothing_where_nothing_is_sound(run_dir, monkeypatch, capsys):
    for step in "123":
        truncate(run_dir, f"latest/{step}")
    assert call(monkeypatch, "prune", run_dir) == 2
    assert "is sound; nothing is deleted" in capsys.readouterr().err
    assert names(run_dir / "checkpoints" / "latest") == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "nowhere"], "error: nowhere holds no run with checkpoints"),
        (["lsit", "nowhere"], "error: the action is 'lsit'; allowed: list, verify, prune"),
        (["list"], "at least 2 are needed"),
    ],
)
def test_bad_arguments_are_one_line(monkeypatch, capsys, arguments, message):
    assert call(monkeypatch, *arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
