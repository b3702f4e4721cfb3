"""What the README shows works: its example of a new objective, and the files it names."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_example_of_a_new_objective(tmp_path):
    blocks = dict(re.findall(r"```python\n# ([\w/]+\.py)\n(.*?)```", README, flags=re.DOTALL))
    assert list(blocks) == [
        "dual_encoder/objectives/smoothed.py",
        "configs/dual_encoder/smoothed.py",
        "tests/dual_encoder/objectives/test_smoothed.py",
    ]
    rooms = [path.parent for path in ROOT.glob("*/__init__.py") if not path.parent.name.startswith(".")]
    for room in rooms:
        shutil.copytree(room, tmp_path / room.name, ignore=shutil.ignore_patterns("__pycache__"))
    for name, code in blocks.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(code, encoding="utf-8")
    tested = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", list(blocks)[-1]],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "1 passed" in tested.stdout, tested.stdout + tested.stderr
    code = (
        "from configs.dual_encoder.smoothed import get_config; from training.build import build;"
        "print(build(get_config().to_dict()['task']).objective.keywords)"
    )
    built = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert built.stdout.strip() == "{'smoothing': 0.1}", built.stderr


def test_links_and_files_exist():
    links = re.findall(r"\]\(((?!http)[^)#]+)\)", README)
    assert len(links) >= 4
    for path in links + re.findall(r"configs/[\w/]+\.py", README):
        assert (ROOT / path).exists() or path == "configs/dual_encoder/smoothed.py", path


def test_every_room_is_on_the_map():
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py") if not path.parent.name.startswith(".")}
    assert rooms <= set(re.findall(r"^\| `(\w+)/`", README, flags=re.MULTILINE))
