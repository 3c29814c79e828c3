"""docs/settings.md gives a reason for every setting of the configuration, and for nothing else."""

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from moebius.config import Config
from moebius.config.removed import REMOVED

PAGE = Path(__file__).parent.parent / "docs" / "settings.md"
SECTIONS = tuple(section.name for section in fields(Config))


def settings(section: str) -> list[str]:
    """Return the settings of a section as the page names them, in the configuration's order.

    All alarms have the same fields. Each alarm is named once, as in `observe.cv`. Each of their
    fields is named once for all alarms, at the end, as in `observe.NAME.threshold`.
    """
    values = getattr(Config(), section)
    names = [f"{section}.{setting.name}" for setting in fields(values)]
    groups = [getattr(values, setting.name) for setting in fields(values)]
    names_in_groups = [
        f"{section}.NAME.{setting.name}"
        for group in groups
        if is_dataclass(group)
        for setting in fields(group)
    ]
    return names + list(dict.fromkeys(names_in_groups))


def full_names() -> Iterator[str]:
    """Yield the name of every setting on the command line, including the fields of each alarm."""
    for section in SECTIONS:
        values = getattr(Config(), section)
        for setting in fields(values):
            yield f"{section}.{setting.name}"
            group = getattr(values, setting.name)
            if is_dataclass(group):
                yield from (f"{section}.{setting.name}.{field.name}" for field in fields(group))


def rows(text: str, section: str) -> list[tuple[str, str]]:
    """Return the setting and the reason of each row of a section's table."""
    (part,) = re.findall(rf"^## {section}\n(.*?)(?=^## )", text, re.DOTALL | re.MULTILINE)
    cells = re.findall(r"^\| (.+?) \| (.*) \|$", part, re.MULTILINE)
    return [(setting.strip("`"), reason) for setting, reason in cells if setting != "setting"]


def mentions(text: str) -> set[str]:
    """Return all settings that the text names as code, in a table or elsewhere."""
    return set(re.findall(rf"`(?:--)?((?:{'|'.join(SECTIONS)})\.[\w.]+)", text))


@pytest.mark.parametrize("section", SECTIONS)
def test_each_setting_has_one_row_in_the_table_of_its_section(section):
    assert [setting for setting, _ in rows(PAGE.read_text("utf-8"), section)] == settings(section)


@pytest.mark.parametrize("section", SECTIONS)
def test_each_row_gives_a_reason(section):
    reasons = dict(rows(PAGE.read_text("utf-8"), section))
    assert [name for name, reason in reasons.items() if not reason.endswith(".")] == []


def test_the_page_names_no_setting_that_does_not_exist():
    known = {
        *full_names(),
        *REMOVED,
        *(name for section in SECTIONS for name in settings(section)),
    }
    assert mentions(PAGE.read_text("utf-8")) - known == set()


def test_each_removed_setting_is_listed_as_removed():
    _, _, removed = PAGE.read_text("utf-8").partition("## Removed settings\n")
    assert mentions(removed) == set(REMOVED)


def test_the_pages_that_it_links_to_exist():
    targets = re.findall(r"\]\(([^)#]+)\)", PAGE.read_text("utf-8"))
    assert targets
    assert [target for target in targets if not (PAGE.parent / target).is_file()] == []


def test_the_readers_of_the_page():
    table = "| setting | reason |\n|---|---|\n| `model.a` | So. |\n"
    text = f"## model\n\n{table}\n## data\n\n`--train.b 3`"
    assert rows(text, "model") == [("model.a", "So.")]
    assert mentions(text) == {"model.a", "train.b"}
