"""The report's page in a browser: safe, without errors, readable on a phone and in the dark."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from proxhpc.cluster import tasks
from proxhpc.launch.launch import prepare_run
from proxhpc.report import write_report
from proxhpc.run.lease import LeaseOwner
from proxhpc.run.progress import ProgressLog
from runs import PARAGRAPH, document, local_site, manifest, write_jsonl

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

HOSTILE = (
    "\x1b[2J</pre></td><script>window.owned=1</script><img src=x onerror=window.owned=1>"
    "<svg onload=window.owned=1><style>*{display:none}</style>&lt;\u202e"
)
LONG = "w" * 600  # nothing to break a line at
PHONE = {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A report in which every text from outside is hostile."""
    folder = tmp_path_factory.mktemp("page")
    rows: list[Any] = [
        document(n, id=f"{HOSTILE}{n}", text=f"Home | About | Us\n{PARAGRAPH}{HOSTILE} {n}.")
        for n in range(12)
    ]
    rows += [document(n, id=f"copy {HOSTILE}") | {"text": rows[n]["text"]} for n in (3, 4, 4)]
    rows += [document(90, text=HOSTILE), document(91, text=f"{LONG} {HOSTILE}"), b"{broken"]
    path = write_jsonl(folder / "in" / "<img src=x onerror=alert(1)>.jsonl", rows)
    sections: dict[str, Any] = {"engine": {"name": "rules", "rules": ["gopher", "fineweb"]}}
    sections |= {"comparison": {"name": HOSTILE[7:60], "parameters": 1000}}
    run = prepare_run(manifest(folder, [path], **sections), local_site(folder), None).dir
    tasks.refine_task(str(run.root), 0, 1)
    log = ProgressLog(run, LeaseOwner("w9", HOSTILE, 1, HOSTILE), "refine")
    log.write("failed", ValueError(HOSTILE))
    tasks.merge_task(str(run.root), 1)
    write_report(run)
    return run.report_html.as_uri()


@pytest.fixture(scope="module")
def browser(chromium: str, url: str) -> "Iterator[Browser]":
    """A browser, opened after the run because its driver keeps this thread's event loop."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser: "Browser", url: str) -> "Iterator[Page]":
    """The page on a phone; in the end it must have logged nothing and loaded nothing else."""
    with browser.new_context(viewport=PHONE) as context:
        opened = context.new_page()
        events: list[str] = []
        opened.on("console", lambda message: events.append(message.text))
        opened.on("pageerror", lambda error: events.append(str(error)))
        opened.on("dialog", lambda dialog: events.append(dialog.message))
        opened.on("request", lambda request: events.append(request.url))
        opened.goto(url)
        yield opened
        assert events == [url]


def test_untrusted_text_does_not_run(page: "Page") -> None:
    assert "<script>window.owned=1</script>" in page.inner_text("body")
    assert page.evaluate("window.owned") is None
    assert page.locator("script, img, iframe, svg[onload], main style").count() == 0
    assert page.locator("h2").first.is_visible()


def test_the_security_policy_blocks_injected_scripts(browser: "Browser", url: str) -> None:
    page = browser.new_page()
    messages: list[str] = []
    page.on("console", lambda message: messages.append(message.text))
    page.goto(url)
    page.evaluate("""() => {
        const script = document.createElement("script");
        script.textContent = "window.owned = 1";
        document.body.append(script);
        document.body.insertAdjacentHTML("beforeend", "<img src=x onerror='window.owned = 1'>");
    }""")
    page.wait_for_timeout(50)
    assert page.evaluate("window.owned") is None
    assert "Content Security Policy" in " ".join(messages)
    page.close()


def test_a_phone_scrolls_only_vertically(page: "Page") -> None:
    page.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")
    assert page.locator(".diff").count() > 5
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    # Wide tables scroll on their own.
    assert page.locator(".wide").first.evaluate("e => getComputedStyle(e).overflowX") == "auto"
    charts = page.locator("svg.chart, svg.flow").all()
    assert len(charts) > 2
    assert all(0 < chart.bounding_box()["width"] <= PHONE["width"] for chart in charts)
    # The table of outcomes fits without its bars.
    table = page.locator(".pair .wide").first
    assert table.evaluate("e => e.scrollWidth <= e.clientWidth")


@pytest.mark.parametrize("width", [PHONE["width"], 1280])
def test_labels_lie_on_no_band_and_no_other_label(page: "Page", width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    for svg in page.locator("svg.flow, svg.chart").all():
        labels, shapes = (
            svg.locator(kind).evaluate_all(
                "all => all.map(e => e.getBoundingClientRect().toJSON())"
            )
            for kind in ("text", "path, rect:not(.tint):not(.track)")
        )
        assert labels
        for position, label in enumerate(labels):
            others = [*shapes, *labels[position + 1 :]]
            assert not [other for other in others if overlap(label, other)], label


def overlap(one: dict[str, float], other: dict[str, float]) -> bool:
    """Whether two boxes share more than a pixel; a letter box has some room around its letters."""
    across = min(one["right"], other["right"]) - max(one["left"], other["left"])
    down = min(one["bottom"], other["bottom"]) - max(one["top"], other["top"])
    return across > 1 and down > 4


def test_diffs_are_side_by_side_on_a_desktop_and_stacked_on_a_phone(page: "Page") -> None:
    page.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")
    diff = page.locator(".diff:not(.single)").first
    same, removed = diff.locator(".before.same").first, diff.locator(".before.removed").first
    copy = diff.locator(".after.same").first
    assert not copy.is_visible()
    assert removed.bounding_box()["width"] > 0.8 * PHONE["width"]
    page.set_viewport_size({"width": 1280, "height": 900})
    boxes = [one.bounding_box() for one in (same, copy)]
    assert boxes[0]["y"] == boxes[1]["y"]
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]
    assert "Home | About | Us" in removed.inner_text()


def test_the_largest_removals_are_open(page: "Page") -> None:
    assert page.locator("details:not(.inner)[open]").count() == 3
    assert page.locator("details").first.get_attribute("open") is not None
    assert page.locator("details[open] .diff .removed").first.is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast_in_both_colour_schemes(page: "Page", scheme: Any) -> None:
    page.emulate_media(color_scheme=scheme)
    paper = luminance(page, "body", "backgroundColor")
    assert paper < 0.1 if scheme == "dark" else paper > 0.9
    for selector in ("body", ".note", "del", "ins", "svg .soft", "code", ".diff .removed"):
        element = page.locator(selector).first
        colour = "fill" if selector.startswith("svg") else "color"
        below = luminance(page, element, "backgroundColor") if selector[:5] == ".diff" else paper
        ink = luminance(page, element, colour)
        light, dark = max(ink, below), min(ink, below)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, f"{selector} on {scheme} paper"


def luminance(page: "Page", element: Any, name: str) -> float:
    """Relative luminance of a computed colour, as WCAG defines it."""
    located = page.locator(element).first if isinstance(element, str) else element
    colour = located.evaluate("(e, name) => getComputedStyle(e)[name]", name)
    parts = [int(part) / 255 for part in colour[4:-1].split(",")]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_printing_opens_every_example(page: "Page") -> None:
    diff = page.locator("details:not([open]) .diff").first
    assert not diff.evaluate("e => e.checkVisibility()")
    page.emulate_media(media="print")
    assert diff.evaluate("e => e.checkVisibility()")
    assert page.pdf(format="A4").startswith(b"%PDF")
