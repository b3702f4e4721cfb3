import doctest
import hashlib

import pytest

from training import files


def test_the_example():
    assert doctest.testmod(files).failed == 0


def test_the_digest_is_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"some bytes")
    assert files.digest(tmp_path / "a") == hashlib.sha256(b"some bytes").hexdigest()
    with pytest.raises(FileNotFoundError):
        files.digest(tmp_path / "b")


def test_plain_settings_are_what_json_gives_back():
    assert files.plain({"a": (1, 2), "b": {"c": None}}) == {"a": [1, 2], "b": {"c": None}}
