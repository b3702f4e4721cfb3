"""The examples of docs/constrained_decoding.md run."""

import re
from pathlib import Path

import numpy as np
import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "constrained_decoding.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_examples(capsys):
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(blocks) == 2
    names = {}
    for block in blocks:
        exec(block, names)
    for found in (names["masked"], names["weighted"], names["learned"]):
        assert set(np.unique(found.documents_BK)) <= {0, 1, 2, 3}
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("query 0: p(document) [")
    assert printed[2] == "3 [0 2] [3 4]"
    assert len(printed) == 5
