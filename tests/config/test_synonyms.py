"""The tables of other trainers' names fit the settings that exist."""

import typing
from typing import Any, Literal

import pytest

from moebius.config import Config
from moebius.config.fields import members, settings
from moebius.config.files import override
from moebius.config.synonyms import SYNONYMS, VALUES
from moebius.errors import ConfigError

SETTINGS = settings(Config)


def test_synonyms_lead_to_settings_that_exist():
    for name, synonym in SYNONYMS.items():
        assert name == name.lower() and "." not in name and "-" not in name
        assert set(synonym.settings) <= set(SETTINGS), name
        assert synonym.settings or synonym.remark, name
        assert "\n" not in synonym.remark


def test_no_synonym_is_itself_the_name_of_a_setting():
    """A valid name in the wrong section leads to the right section without a synonym."""
    assert not {name.rpartition(".")[2] for name in SETTINGS} & SYNONYMS.keys()


def allowed(setting: str, value: str) -> bool:
    section, key = setting.split(".")
    try:
        override(Config(), {section: {key: value}})
    except ConfigError:
        return False
    return True


@pytest.mark.parametrize("setting", VALUES)
def test_values_lead_from_what_is_refused_to_what_is_allowed(setting):
    for wrong, right in VALUES[setting].items():
        assert wrong == wrong.lower()
        assert not allowed(setting, wrong), wrong
        assert right in choices(setting) or allowed(setting, right), right


def choices(setting: str) -> tuple[Any, ...]:
    """Return the choices of a setting. Some of them are not allowed for every model."""
    kinds = [kind for kind in members(SETTINGS[setting]) if typing.get_origin(kind) is Literal]
    return tuple(choice for kind in kinds for choice in typing.get_args(kind))


def test_a_value_that_a_synonym_determines_is_allowed():
    for synonym in SYNONYMS.values():
        for setting in synonym.settings if synonym.value else ():
            assert allowed(setting, synonym.value)
