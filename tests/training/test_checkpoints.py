import json
import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from training.checkpoints import CheckpointError, Checkpoints, damage, read_best, read_best_params
from training.mesh import data_mesh, replicate
from training.tables import Tables
from training.task import TrainState


def state(step, value, average=None):
    params, task_state = {"w": jnp.full(3, value)}, {"seen": jnp.int32(step)}
    return TrainState(jnp.int32(step), params, task_state, (jnp.zeros(2),), average)


def saved(folder, *steps):
    checkpoints = Checkpoints(folder, keep=len(steps))
    for step in steps:
        checkpoints.save(state(step, float(step)), {"rows": step})
    checkpoints.close()


def biggest_file(folder):
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".json")
    return max(files, key=lambda path: path.stat().st_size)


def truncate(file):
    os.truncate(file, file.stat().st_size // 2)


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


LIKE = state(0, 0.0)


def test_the_latest_are_kept_and_restored(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.latest_step() is None
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        checkpoints.restore(LIKE)
    for step in (1, 2, 3):
        checkpoints.save(state(step, float(step)), {"rows": step})
    checkpoints.close()
    again = Checkpoints(tmp_path)
    restored, position = again.restore(LIKE)
    np.testing.assert_array_equal(restored.params["w"], [3.0] * 3)
    assert (int(restored.step), again.latest_step(), position) == (3, 3, {"rows": 3})
    assert sorted(path.name for path in (tmp_path / "latest").iterdir() if path.name.isdigit()) == ["2", "3"]


def test_the_best_is_replaced_by_a_better_one(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.best_value() is None
    checkpoints.save_best(state(4, 4.0), 0.2)
    checkpoints.save_best(state(8, 8.0), 0.3)
    step, params, task_state = read_best(tmp_path, LIKE.params, LIKE.state)
    assert (step, checkpoints.best_value(), int(task_state["seen"])) == (8, 0.3, 8)
    np.testing.assert_array_equal(params["w"], [8.0] * 3)
    checkpoints.close()
    assert [path.name for path in (tmp_path / "best").iterdir() if path.name.isdigit()] == ["8"]


def test_killed_before_the_best_was_recorded_the_run_goes_on(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save_best(state(8, 8.0), 0.3)
    checkpoints.close()
    (tmp_path / "best.json").unlink()  # as though killed between the weights and their record
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.best_value() is None
    checkpoints.save_best(state(8, 8.5), 0.4)  # the resumed run comes to the same step again
    step, params, _ = read_best(tmp_path, LIKE.params, LIKE.state)
    assert (step, json.loads((tmp_path / "best.json").read_text())["value"]) == (8, 0.4)
    np.testing.assert_array_equal(params["w"], [8.5] * 3)


def test_another_shape_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(1, 1.0), {})
    checkpoints.close()
    other = TrainState(jnp.int32(0), {"w": jnp.zeros(4)}, {"seen": jnp.int32(0)}, (jnp.zeros(2),))
    with pytest.raises(CheckpointError, match="cannot be restored"):
        Checkpoints(tmp_path).restore(other)


@pytest.mark.parametrize("harm", [truncate, flip, Path.unlink])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(tmp_path, capsys, harm):
    saved(tmp_path, 1, 2, 3)
    file = biggest_file(tmp_path / "latest" / "3")
    harm(file)
    checkpoints = Checkpoints(tmp_path, keep=3)
    restored, position = checkpoints.restore(LIKE)
    assert (int(restored.step), position) == (2, {"rows": 2})
    assert f"checkpoint {tmp_path / 'latest' / '3'} is damaged: " in capsys.readouterr().err
    # It is set aside, so that the run can come to step 3 again.
    assert checkpoints.latest_step() == 2
    assert (tmp_path / "latest" / "3.damaged").is_dir()
    checkpoints.save(state(3, 3.0), {})
    checkpoints.close()
    assert list(damage(tmp_path / "latest" / "3")) == []


def test_where_all_are_damaged_the_run_does_not_start_anew(tmp_path):
    saved(tmp_path, 1, 2)
    for step in "12":
        truncate(biggest_file(tmp_path / "latest" / step))
    with pytest.raises(CheckpointError, match=r"all checkpoints in .* are damaged: \[2, 1\]"):
        Checkpoints(tmp_path).restore(LIKE)
    assert (tmp_path / "latest" / "2").is_dir()


def test_a_damaged_best_checkpoint_is_an_error(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save_best(state(4, 4.0), 0.2)
    checkpoints.close()
    truncate(biggest_file(tmp_path / "best"))
    with pytest.raises(CheckpointError, match=r"best/4 is damaged: .* bytes of"):
        read_best(tmp_path, LIKE.params, LIKE.state)


def test_the_best_holds_what_was_evaluated(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save_best(state(4, 4.0, average={"w": jnp.full(3, 9.0)}), 0.2)
    checkpoints.save_best(state(4, 5.0), 0.3)  # the step once more, in a resumed run: on record already
    assert checkpoints.best_value() == 0.2
    step, params, _ = read_best_params(tmp_path)
    np.testing.assert_array_equal(params["w"], [9.0] * 3)
    assert step == 4


def test_a_damaged_record_of_the_best_is_an_error_that_says_what_it_must_hold(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save_best(state(4, 4.0), 0.2)
    checkpoints.close()
    (tmp_path / "best.json").write_text('{"step": 4, "va')
    with pytest.raises(CheckpointError, match=r'best.json is damaged.* as \{"step": 100, "value": 0.5\}'):
        Checkpoints(tmp_path)


def test_parameters_saved_from_eight_devices_are_read_on_one(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save_best(replicate(state(4, 4.0), data_mesh()), 0.2)
    checkpoints.close()
    script = (
        "import sys; from training.checkpoints import read_best_params; print(read_best_params(sys.argv[1]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], cwd=Path(__file__).parents[2],
        env={**os.environ, "XLA_FLAGS": ""}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (
        done.stdout == "(4, {'w': array([4., 4., 4.], dtype=float32)}, {'seen': array(4, dtype=int32)})\n"
    ), done.stderr


@pytest.mark.parametrize("harm", [truncate, flip, Path.unlink])
def test_a_checkpoint_whose_table_is_damaged_is_damaged(tmp_path, harm):
    tables = Tables(tmp_path, {}, {})
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    checkpoints.save(state(1, 1.0), {"tables": {}})
    tables.replace(2, {"negatives": np.arange(9)}, keep=[])
    checkpoints.save(state(2, 2.0), {"tables": tables.in_use})
    checkpoints.wait()
    harm(tmp_path / "tables" / "negatives-2.npy")
    restored, _ = checkpoints.restore(LIKE)
    assert int(restored.step) == 1


def test_an_unfinished_checkpoint_is_removed(tmp_path):
    saved(tmp_path, 1)
    (tmp_path / "latest" / "1").rename(tmp_path / "latest" / "2.orbax-checkpoint-tmp")
    assert Checkpoints(tmp_path).latest_step() is None
    assert list((tmp_path / "latest").iterdir()) == []


def test_positions_are_those_on_disk_and_the_one_being_written(tmp_path):
    saved(tmp_path, 1, 2)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(3, 3.0), {"rows": 3})
    assert {position["rows"] for position in checkpoints.positions()} >= {2, 3}
    checkpoints.close()


FULL_DISK = """
import resource, signal, sys
import jax, jax.numpy as jnp
from training.checkpoints import CheckpointError, Checkpoints
from training.task import TrainState

def state(step):
    params = {"w": jax.random.normal(jax.random.key(step), (30_000,))}
    return TrainState(jnp.int32(step), params, {}, (), None)

checkpoints = Checkpoints(sys.argv[1])
checkpoints.save(state(1), {"rows": 1})
checkpoints.wait()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then a write beyond the limit fails, as on a full disk
unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, unlimited[1]))
for save in (lambda: checkpoints.save(state(2), {}), lambda: checkpoints.save_best(state(2), 0.5)):
    try:
        save()
        checkpoints.wait()
    except CheckpointError as error:
        print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
restored, position = checkpoints.restore(state(0))
print(int(restored.step), position, checkpoints.best_value())
checkpoints.save(state(3), {"rows": 3})  # there is room again
checkpoints.close()
print(checkpoints.latest_step())
"""


def test_a_full_disk_is_reported_and_loses_nothing(tmp_path):
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)],
        cwd=root, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    latest, best, restored, last = done.stdout.splitlines()
    for line, kind in ((latest, "latest/2"), (best, "best/2")):
        assert line == (
            f"checkpoint {tmp_path / kind} cannot be saved: File too large; "
            "the last good checkpoint is step 1"
        )
    assert restored == "1 {'rows': 1} None"
    assert last == "3"
    names = sorted(path.name for kind in ("latest", "best") for path in (tmp_path / kind).iterdir())
    assert names == ["1", "3"]


def test_a_flipped_bit_is_found_in_every_file(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state(4, 4.0), {"window": 1})
    path = tmp_path / "latest" / "4"
    files = [file for file in path.rglob("*") if file.is_file() and file.stat().st_size]
    assert {"_CHECKPOINT_METADATA", "digests.json", "position.json"} < {file.name for file in files}
    assert not list(damage(path))
    for file in files:
        content = file.read_bytes()
        for at in {0, len(content) // 2, len(content) - 1}:
            file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
            assert list(damage(path)), (file, at)
        file.write_bytes(content)
