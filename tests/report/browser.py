"""A headless Chromium that opens reports, for tests of what people see."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")
SECONDS = 60
"""How long a report may take to draw all its charts. Machines of tests are slow and busy."""

READY = "html[data-ready=all]"
"""The selector of a report whose charts are all drawn."""


@dataclass
class Opened:
    """A report in a window."""

    page: Any
    messages: list[str] = field(default_factory=list)
    """Errors and warnings of the console."""
    requests: list[str] = field(default_factory=list)
    """Everything that the page has asked for."""


@contextmanager
def opened(place: Path | str, width: int = 1440, scheme: Any = "light") -> Iterator[Opened]:
    """Open a report in a window of this width and color scheme, until all charts are drawn.

    place: its file, for which the network is unplugged, or the URL of a server. Skips the test if
    there is no Chromium, or no Playwright.
    """
    api = pytest.importorskip("playwright.sync_api", reason="needs Playwright")
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip("needs Chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme=scheme,
            offline=isinstance(place, Path),
        )
        result = Opened(context.new_page())
        result.page.on("console", lambda message: result.messages.append(message.text))
        result.page.on("pageerror", lambda error: result.messages.append(str(error)))
        result.page.on("request", lambda request: result.requests.append(request.url))
        result.page.goto(place.absolute().as_uri() if isinstance(place, Path) else place)
        result.page.wait_for_selector(READY, state="attached", timeout=SECONDS * 1e3)
        yield result
        browser.close()
