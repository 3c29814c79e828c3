"""What people and programs are shown."""

import json

import pytest

from moebius.profile.findings import Finding
from moebius.profile.page import page
from moebius.profile.report import as_json, chart, table
from tests.profile.made_up import TIMES, made_up, small_config


def test_the_rows_add_up_and_the_largest_is_first():
    profile = made_up(small_config("--model.base_expansion=1"))
    assert sum(row.share for row in profile.rows) == pytest.approx(1, abs=0.01)
    assert [row.seconds for row in profile.rows] == sorted((row.seconds for row in profile.rows), reverse=True)
    assert all(row.efficiency == pytest.approx(1 / TIMES) for row in profile.rows if row.floor)


def test_the_table_names_every_component_and_covers_the_step():
    profile = made_up(small_config("--model.base_expansion=1", "--model.use_mtp=true"), waiting=0.2)
    text = "\n".join(table(profile))
    for row in profile.rows:
        assert row.component.replace("_", " ") in text
    assert "covered    the components add up to 100.0% of the step, 20.0% of it waiting for the host; while" in text
    assert "waiting" in text.splitlines()[0]
    assert "waiting" not in "\n".join(table(made_up(small_config())))


def test_how_long_the_host_takes_is_said_of_a_gpu():
    step = made_up(small_config()).measured.seconds
    (line,) = (line for line in table(made_up(small_config(), host=0.75 * step)) if line.startswith("host"))
    assert "75% of the step" in line
    assert not any(line.startswith("host") for line in table(made_up(small_config())))


def test_json_has_the_table_in_seconds():
    profile = made_up(small_config())
    values = json.loads(as_json(profile, [Finding("a title", "some evidence", ("--model.dim=1",), 0.5)]))
    assert values["step_seconds"] == profile.measured.seconds
    assert values["findings"][0]["flags"] == ["--model.dim=1"]
    assert sum(each["forward"] + each["backward"] for each in values["components"]) == pytest.approx(
        values["step_seconds"], rel=0.01
    )


def test_the_chart_is_a_picture(tmp_path):
    chart(made_up(small_config(), waiting=0.1), tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_has_everything_and_loads_nothing():
    profile = made_up(small_config(), waiting=0.1)
    text = page(profile, [Finding("a <title>", "some evidence", ("--model.dim=1",), 0.5 * profile.measured.seconds)])
    for row in profile.rows:
        assert f"<td>{row.component.replace('_', ' ')}</td>" in text
    for expected in ("a &lt;title&gt;", "some evidence", "--model.dim=1", "2.00x", "data:image/png;base64,iVBOR"):
        assert expected in text
    assert "http" not in text and "<script" not in text
    assert "Nothing; it is bound by" in page(profile, [])
