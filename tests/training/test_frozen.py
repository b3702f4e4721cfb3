"""Which parameters stay as they are; that they do is shown where towers are frozen."""

import types

import pytest

from training import frozen


def test_one_string_is_no_list_of_expressions():
    assert frozen.of(types.SimpleNamespace(frozen=("^model/document/",))) == ("^model/document/",)
    assert frozen.of(object()) == ()
    with pytest.raises(ValueError, match=r"frozen is '\^model/'; allowed: a sequence"):
        frozen.of(types.SimpleNamespace(frozen="^model/"))
