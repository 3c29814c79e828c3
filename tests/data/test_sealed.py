"""A sealed file is refused after any change of its values."""

import json

import pytest

from moebius.data.sealed import read_sealed, write_sealed


def test_values_are_read_back_and_any_change_is_refused(tmp_path):
    path = tmp_path / "a.json"
    values = {"a": 1, "b": {"c": [1.5, "é", None]}}
    write_sealed(path, values)
    assert read_sealed(path) == values
    sealed = json.loads(path.read_text())
    for changed in (
        sealed | {"a": 2},
        sealed | {"d": 1},
        {name: value for name, value in sealed.items() if name != "a"},
        {name: value for name, value in sealed.items() if name != "sha256"},
        sealed | {"b": {"c": [1.5, "e", None]}},
        [sealed],
    ):
        path.write_text(json.dumps(changed))
        with pytest.raises(ValueError):
            read_sealed(path)
    path.write_text(json.dumps(sealed, sort_keys=True))  # the order of the names does not matter
    assert read_sealed(path) == values
