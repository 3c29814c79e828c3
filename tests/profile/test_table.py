"""Tests of the table on the terminal."""

from moebius.profile.table import table
from tests.profile.made_up import made_up, small_config


def test_the_table_names_every_component_and_covers_the_step():
    config = small_config("--model.base_expansion=1", "--model.use_mtp=true")
    profile = made_up(config, waiting=0.2)
    text = "\n".join(table(profile))
    for row in profile.rows:
        assert row.component.replace("_", " ") in text
    covered = "covered    the components add up to 100.0% of the step (20.0% of it waiting for"
    assert covered in text


def test_only_a_device_that_waits_has_a_column_for_it():
    assert "waiting" in table(made_up(small_config(), waiting=0.2))[0]
    assert "waiting" not in "\n".join(table(made_up(small_config())))


def test_how_long_the_host_takes_is_said_where_it_is_known():
    step = made_up(small_config()).measured.seconds
    lines = table(made_up(small_config(), host=0.75 * step))
    assert ["75% of its time" in line for line in lines if line.startswith("host")] == [True]
    assert not any(line.startswith("host") for line in table(made_up(small_config())))
