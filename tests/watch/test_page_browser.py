"""A browser follows runs by the page: it renews itself and keeps the reader's place."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moebius.watch import page as module
from moebius.watch.page import FollowedReport, _Server
from tests.report.browser import READY, SECONDS, opened
from tests.report.made_up_run import metrics_lines
from tests.report.test_report_browser import full_run

pytestmark = pytest.mark.heavy

PLACE = """() => ({
  top: scrollY,
  along: document.querySelector("input[name=along]:checked").value,
  open: [...document.querySelectorAll("details")].map((each) => each.open),
})"""
"""What a reader has chosen."""


@pytest.fixture
def folder(tmp_path) -> Path:
    """A run of 20 steps that has everything that a report can show."""
    return full_run(tmp_path)


@pytest.fixture
def server(folder, monkeypatch) -> Iterator[_Server]:
    """A server of that run, which may make its page anew at any time."""
    monkeypatch.setattr(module, "SHORTEST_SECONDS", 0.0)
    monkeypatch.setattr(module, "SHARE", 1e9)
    server = _Server(0, FollowedReport([folder]))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def grow(folder: Path, step: int) -> None:
    """Log one more step of the run."""
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(metrics_lines([step])[0]) + "\n")


def version(page: Any) -> str:
    return page.get_attribute("meta[name=version]", "content")


def wait_for_another(page: Any, known: str) -> None:
    """Wait until the page has renewed itself and its charts are drawn."""
    selector = f"meta[name=version]:not([content='{known}'])"
    page.wait_for_selector(selector, state="attached", timeout=SECONDS * 1e3)
    page.wait_for_selector(READY, state="attached", timeout=SECONDS * 1e3)


@pytest.mark.parametrize("width", [360, 1440])
def test_the_page_renews_itself_and_keeps_its_place(folder, server, width):
    url = f"http://127.0.0.1:{server.port}/"
    with opened(url, width) as shown:
        page = shown.page
        page.check("input[value=tokens]")
        page.locator("details").last.evaluate("(each) => { each.open = !each.open; }")
        page.evaluate("scrollTo({ top: 900, behavior: 'instant' })")
        place, first = page.evaluate(PLACE), version(page)
        assert place["along"] == "tokens" and place["top"] == 900
        for step in (21, 22):
            known = version(page)
            grow(folder, step)
            wait_for_another(page, known)
            assert page.evaluate(PLACE) == place
        assert version(page) != first and "22" in page.inner_text("body")
        assert shown.messages == [] and set(shown.requests) == {url}


def test_the_page_waits_for_a_reader_who_selects_text(folder, server):
    with opened(f"http://127.0.0.1:{server.port}/") as shown:
        page, known = shown.page, version(shown.page)
        page.evaluate("getSelection().selectAllChildren(document.querySelector('h1'))")
        grow(folder, 21)
        page.wait_for_timeout(7_000)  # it looks every three seconds
        assert version(page) == known
        page.evaluate("getSelection().removeAllRanges()")
        wait_for_another(page, known)
        assert shown.messages == []


def test_a_server_that_has_ended_leaves_the_page(folder, server):
    with opened(f"http://127.0.0.1:{server.port}/") as shown:
        known = version(shown.page)
        server.shutdown()
        server.server_close()
        shown.page.wait_for_timeout(7_000)
        assert version(shown.page) == known and "<h1>Run run</h1>" in shown.page.content()
