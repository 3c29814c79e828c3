"""Tests of what a browser shows of a report, in `make test-all` where there is Chromium."""

import json
from pathlib import Path

import pytest

from moebius.moe.load import dead_share
from moebius.report.report import write_report
from tests.report.browser import opened
from tests.report.made_up_run import EVEN, alarm, collapsed, falling, metrics_lines, write_run

pytestmark = pytest.mark.heavy

WINDOWS = [(360, "light"), (360, "dark"), (1440, "light"), (1440, "dark")]

CONTRASTS = """() => {
  const parsed = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => {
    const linear = [r, g, b].map((x) => x / 255 <= 0.04045 ? x / 255 / 12.92
      : ((x / 255 + 0.055) / 1.055) ** 2.4);
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const color = parsed(getComputedStyle(at).backgroundColor);
      if (color.length === 3 || color[3] > 0) return color;
    }
    return [255, 255, 255];
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.textContent.trim() || !element.getClientRects().length) continue;
    if (["SCRIPT", "STYLE", "NOSCRIPT"].includes(element.tagName)) continue;
    const style = getComputedStyle(element);
    const ink = parsed(element.namespaceURI.endsWith("svg") ? style.fill : style.color);
    const [a, b] = [light(ink), light(behind(element))].sort((x, y) => y - x);
    found.push([(a + 0.05) / (b + 0.05), node.textContent.trim().slice(0, 40)]);
  }
  return found;
}"""
"""The contrast of every text that can be seen with what is behind it, as WCAG 2 defines it."""


def full_run(folder: Path, name: str = "run") -> Path:
    """Write a run that has everything that a report can show."""
    events = [
        alarm(5, "cv"),
        alarm(7, "dead_expert", experts=[1], done="expert 1 is now a copy of expert 0"),
        alarm(9, "cv", over=True),
        {"event": "skipped", "step": 11, "in_a_row": 1},
        {"event": "resumed", "step": 12, "changed": {"train.lr": [0.1, 0.2]}},
    ]
    lines = metrics_lines(range(1, 21), counts=collapsed, evaluated=falling)
    run = write_run(folder / name, lines, events)
    component = {"floor": 0.001, "forward": 0.002, "backward": 0.003, "waiting": 0.001}
    component |= {
        "component": "experts",
        "parameters": 5,
        "flops": 1.0,
        "bytes": 1.0,
        "share": 1.0,
    }
    finding = {"title": "a title", "evidence": "some evidence", "flags": ["--train.lr=1"]}
    curve = [{"step": n, "loss": 3.0, "bits_per_byte": 1.0} for n in (5, 10)]
    twin = {"is_twin": True, "tokens_per_step": 1000, "flags": [], "curves": [curve]}
    files = {
        "profile.json": {"device": "CPU", "components": [component], "findings": [finding]},
        "ablate.json": {"variants": [twin]},
        "samples.jsonl": {"step": 5, "text": "word " * 40 + "x" * 300},
        "evaluations/step-00000005.json": {
            "experts": [{"layer": 0, "top_tokens": [[{"text": "a" * 90}]]}]
        },
        "environment.jsonl": {"step": 0, "device": "a device with a long name " * 4},
    }
    for file, values in files.items():
        (run / file).parent.mkdir(exist_ok=True)
        (run / file).write_text(json.dumps(values))
    return run


@pytest.mark.parametrize(("width", "scheme"), WINDOWS)
def test_a_report_can_be_read(tmp_path, width, scheme):
    path, _ = write_report([full_run(tmp_path)])
    with opened(path, width, scheme) as shown:
        assert shown.messages == []
        assert shown.requests == [path.absolute().as_uri()]
        assert shown.page.evaluate("document.documentElement.scrollWidth") == width
        contrasts = shown.page.evaluate(CONTRASTS)
        assert len(contrasts) > 150
        assert [pair for pair in contrasts if pair[0] < 4.5] == []


@pytest.mark.parametrize("width", [360, 1440])
def test_several_runs_can_be_read(tmp_path, width):
    runs = [full_run(tmp_path, "first"), full_run(tmp_path, "a-name-that-is-rather-long" * 2)]
    runs.append(write_run(tmp_path / "third", flags=["--train.lr=0.5"]))
    path, _ = write_report(runs, tmp_path / "report.html")
    with opened(path, width) as shown:
        assert shown.messages == []
        assert shown.page.evaluate("document.documentElement.scrollWidth") == width


def test_the_heat_map_has_the_right_cells(tmp_path):
    """Its pixels have the colors of the scale for the share of each expert at each step."""

    def counts(step):
        return [[step, 1, 1, 2], [], EVEN]

    steps = range(1, 21)
    path, _ = write_report([write_run(tmp_path / "run", metrics_lines(steps, counts=counts))])
    with opened(path) as shown:
        canvas = shown.page.locator(".heat canvas").first
        size = canvas.evaluate("(c) => [c.width, c.height]")
        assert size == [20, 4]
        pixels = canvas.evaluate("(c) => [...c.getContext('2d').getImageData(0, 0, 20, 4).data]")
        named = {
            name: shown.page.evaluate(COLOR, f"--heat-{name}") for name in (*range(7), "dead")
        }
        for step in steps:
            loads = counts(step)[0]
            for expert, load in enumerate(loads):
                start = 4 * (expert * 20 + step - 1)
                color = named[level(load / sum(loads), len(loads))]
                assert pixels[start : start + 3] == color, (step, expert)


COLOR = """(name) => {
  const probe = document.createElement("i");
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  return getComputedStyle(probe).color.match(/\\d+/g).map(Number);
}"""


def level(share: float, num_experts: int) -> int | str:
    """Return the name of the color of a share."""
    if share < dead_share(num_experts):
        return "dead"
    edges = (0.25, 0.5, 0.8, 1.25, 2, 4)
    return sum(share * num_experts >= edge for edge in edges)


def test_a_pointer_on_the_heat_map_says_the_share(tmp_path):
    lines = metrics_lines(range(1, 21), counts=lambda step: [[5, 1, 1, 3], [], EVEN])
    path, _ = write_report([write_run(tmp_path / "run", lines)])
    with opened(path) as shown:
        canvas = shown.page.locator(".heat canvas").first
        canvas.scroll_into_view_if_needed()
        canvas.hover(position={"x": 3, "y": 3})
        said = shown.page.locator(".float").inner_text()
        assert said.startswith("expert 0, step 1")
        assert "50% of the layer's load, 2 times the even share" in said


@pytest.mark.parametrize(
    ("axis", "last"), [("tokens", "20k"), ("seconds", "40 s"), ("step", "20")]
)
def test_the_axis_can_be_chosen(tmp_path, axis, last):
    path, _ = write_report([write_run(tmp_path / "run")])
    with opened(path) as shown:
        shown.page.check(f"input[value={axis}]")
        places = shown.page.locator(".heat .places span").all_inner_texts()
        assert places[2] == last
        title = shown.page.locator(".heat .places span").nth(1).inner_text()
        assert title in shown.page.locator("svg").first.text_content()
        assert shown.messages == []


def test_a_change_of_the_color_scheme_is_followed(tmp_path):
    path, _ = write_report([full_run(tmp_path)])
    with opened(path) as shown:
        shown.page.emulate_media(color_scheme="dark")
        shown.page.wait_for_timeout(500)
        assert [pair for pair in shown.page.evaluate(CONTRASTS) if pair[0] < 4.5] == []


def test_hostile_texts_are_shown_and_do_nothing(tmp_path):
    evil = "</script><img src=x onerror=alert(1)>"
    run = full_run(tmp_path)
    (run / "samples.jsonl").write_text(json.dumps({"step": 1, "text": evil}))
    (run / "events.jsonl").write_text(json.dumps({"event": evil, "step": 3, "x": evil}))
    path, _ = write_report([run])
    with opened(path) as shown:
        assert shown.messages == [] and len(shown.requests) == 1
        assert shown.page.locator("img").count() == 0
        assert evil in shown.page.locator("pre").first.inner_text()
