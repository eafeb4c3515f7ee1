"""The report in a browser: no error, no request, no sideways scrolling, every figure visible, at three widths."""

import shutil

import pytest
from make_records import campaign

from cctrain.comparison.compare import compare
from cctrain.comparison.groups import Options
from cctrain.load import read_runs
from cctrain.report import html

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[dev]'")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no chromium on the path: apt-get install chromium")

VISIBLE = """() => [...document.querySelectorAll('figure')].map(figure => {
    const shown = [...figure.querySelectorAll('svg')].map(svg => svg.getBoundingClientRect()).filter(box => box.width);
    const texts = [...figure.querySelectorAll('svg text')].map(t => t.getBoundingClientRect()).filter(b => b.width);
    return {name: figure.id, shown: shown.length, width: shown[0]?.width, height: shown[0]?.height,
            left: shown[0]?.left, right: shown[0]?.right,
            smallest: Math.min(...texts.map(b => Math.max(b.width, b.height))),
            out: texts.filter(box => box.right > shown[0].right + 1 || box.left < shown[0].left - 1).length};
})"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    root = tmp_path_factory.mktemp("report")
    campaign(root / "runs", pairs=2)
    answer = compare(read_runs([root / "runs", root / "runs" / "lengths"]), Options(by=("sequence",)))
    page = root / "report.html"
    page.write_text(html.page(answer), encoding="utf-8")
    return page


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 820, 1440])
def test_every_figure_is_visible_and_nothing_is_asked_of_the_network(browser, report, width, scheme):
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    problems, requests = [], []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(report.as_uri())
    figures = page.evaluate(VISIBLE)
    assert problems == []
    assert [url for url in requests if not url.startswith("data:")] == [report.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert {figure["name"].partition("_")[0] for figure in figures} == {
        "keep",
        "loss",
        "steps",
        "distribution",
        "phases",
        "explain",
    }
    for figure in figures:
        assert figure["shown"] == 1, figure
        assert figure["width"] >= min(width - 80, 340), figure
        assert figure["height"] > 80, figure
        assert 0 <= figure["left"] < figure["right"] <= width, figure
        assert figure["smallest"] >= 9, figure
        assert figure["out"] == 0, figure
    page.close()


@pytest.mark.parametrize(("scheme", "page_is_dark"), [("light", False), ("dark", True)])
def test_the_page_follows_the_readers_colours(browser, report, scheme, page_is_dark):
    page = browser.new_page(color_scheme=scheme)
    page.goto(report.as_uri())
    colours = page.evaluate(
        "['backgroundColor', 'color'].map(name => getComputedStyle(document.body)[name].match(/[0-9]+/g).map(Number))"
    )
    background, ink = (sum(colour[:3]) for colour in colours)
    assert (background < ink) == page_is_dark
    page.close()


def test_it_prints_with_its_folded_tables(browser, report, tmp_path):
    page = browser.new_page()
    page.goto(report.as_uri())
    page.pdf(path=str(tmp_path / "report.pdf"), format="A4")
    assert (tmp_path / "report.pdf").stat().st_size > 50_000
    page.emulate_media(media="print")
    assert page.locator("details table").first.evaluate("table => table.getBoundingClientRect().height") > 0
    page.close()
