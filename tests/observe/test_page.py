"""Tests of pages: what they hold, that nothing in them can escape, and that they load nothing."""

import base64
import hashlib
import json
import re
import tomllib
from pathlib import Path

import moebius.observe.page as module
from moebius.observe.charts import Charts, Line, Marks
from moebius.observe.page import axis_switch, facts, page, prose, table, text

EVIL = "</script><script>alert(1)</script>\x1b[31m<!--"


def made(*body: str) -> str:
    """Return a page with an evil text in a chart."""
    charts = Charts()
    axes = charts.places({"step": [1, 2]})
    lines = charts.lines(EVIL, EVIL, [Line(EVIL, axes, [1, 2])])
    marks = charts.marks("", "", [EVIL], [Marks(EVIL, axes, [0, 0], [EVIL, "x"], 1, "pin")], {})
    return page(EVIL, [lines, marks, *body], charts)


def test_texts_cannot_become_markup():
    html = made(table([EVIL], [[EVIL]]), facts([(EVIL, EVIL)]), f"<p>{text(EVIL)}</p>")
    assert "alert(1)</script>" not in html and "<script>alert" not in html
    assert "\x1b" not in html.replace("\\u001b", "")
    assert html.count("</script>") == 3  # the data, the library, and what draws with it


def test_the_data_come_back():
    found = re.search(r'<script type="application/json" id=data>(.*?)</script>', made(), re.DOTALL)
    assert found
    values = json.loads(found[1])
    assert values["charts"]["chart-1"]["rows"] == [EVIL]


def test_the_policy_allows_exactly_the_scripts_of_the_page():
    html = made()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="(.*?)"', html)
    assert policy and "default-src 'none'" in policy[1]
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    assert re.findall(r"'sha256-(.*?)'", policy[1]) == digests and len(digests) == 2


def test_the_notice_and_the_licenses_of_the_library_are_in_the_page():
    html = made()
    for part in (
        "Copyright 2017-2026 The Apache Software Foundation",
        "Version 2.0, January 2004",
    ):
        assert part in html
    assert "Redistributions in binary form" in html  # of the part that is from d3
    assert "Apache ECharts, Apache License 2.0" in html


def test_the_library_is_the_released_file():
    """npm's package echarts 6.1.0 has this dist/echarts.min.js."""
    library = Path(module.__file__).parent / "echarts" / "echarts.min.js"
    digest = hashlib.sha256(library.read_bytes()).hexdigest()
    assert digest == "b66b25aeb4df84e33199dc21694014d336d222cbd9deb0e5a7c14bd6aa0d0fd0"


def test_only_the_first_axis_is_chosen():
    html = "".join(axis_switch({"step": "steps", "tokens": "tokens"}))
    assert html.count("checked") == 1 and html.index("checked") < html.index("tokens")


def test_backticks_become_code():
    assert prose("run `a <b>` or ``") == "run <code>a &lt;b&gt;</code> or ``"


def test_a_cell_knows_the_head_of_its_column():
    assert '<td data-head="step">5</td><td>x</td>' in table(["step", ""], [["5", "x"]])


def test_every_file_of_a_page_is_installed():
    package = Path(module.__file__).parent.parent
    settings = tomllib.loads((package.parent / "pyproject.toml").read_text())
    patterns = settings["tool"]["setuptools"]["package-data"]["moebius"]
    installed = {path for pattern in patterns for path in package.glob(pattern)}
    files = {
        path
        for path in package.rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    assert files == installed
