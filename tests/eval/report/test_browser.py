"""The pages in a real browser: sorted tables, folded parts, no scroll across, contrast, print, no network, no script.

Needs Debian's chromium and chromium-driver, selenium (requirements-dev.txt), and for contrast axe-core:
`npm install axe-core` in the repository's root, or AXE_CORE=PATH/axe.min.js.
"""

import os
import re
import shutil
from pathlib import Path

import pytest

from eval.report.__main__ import build
from eval.report.document.page import render_page
from eval.report.plots import Plot, draw_all
from eval.report.run_data import read_run
from int8kit.folder import document
from int8kit.result import FLOAT, INT8, Line, Quantized

ROOT = Path(__file__).parents[3]
REPORTS = ROOT / "benchmarks" / "reports"
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
AXE = next((path for path in (Path(os.environ.get("AXE_CORE", "/absent")),
            ROOT / "node_modules" / "axe-core" / "axe.min.js") if path.is_file()), None)  # fmt: skip
WIDTHS = (420, 768, 1600)
PAGES = ("report", "float", "search", "hackathon", "folder")
TABLES = """return [...document.querySelectorAll("table.sorts")].map((table) => ({
  numeric: [...table.tHead.rows[0].cells].map((head) => head.dataset.numeric !== undefined),
  buttons: [...table.tHead.rows[0].cells].map((head) => head.querySelector("button") !== null),
  rows: table.tBodies[0].rows.length}))"""
COLUMN = """const [number, column] = arguments; const table = document.querySelectorAll("table.sorts")[number];
return {state: table.tHead.rows[0].cells[column].getAttribute("aria-sort"), cells: [...table.tBodies[0].rows].map(
  (row) => [row.cells[column].dataset.value ?? null, row.cells[column].textContent.trim()])}"""
CLICK = """document.querySelectorAll("table.sorts")[arguments[0]].tHead.rows[0].cells[arguments[1]]
  .querySelector("button").click()"""

if CHROMIUM is None or DRIVER is None:
    pytest.skip("no chromium: apt-get install chromium chromium-driver", allow_module_level=True)
selenium = pytest.importorskip("selenium", reason="no selenium: pip install -r requirements-dev.txt")


@pytest.fixture(scope="module")
def browser():
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.execute_cdp_cmd("Network.enable", {})
    driver.execute_cdp_cmd("Network.emulateNetworkConditions", {"offline": True, "latency": 0,
                           "downloadThroughput": 0, "uploadThroughput": 0})  # fmt: skip
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Return every kind of page: two committed reports and a search, the contest's in Chinese, a folder's."""
    out = tmp_path_factory.mktemp("pages")
    data = read_run(REPORTS / "minilm-h200")
    contest = build(data, draw_all(data, 0.01), "hackathon", "zh", 0.01)[1]
    (out / "checkpoint").mkdir()
    (out / "checkpoint" / "config.json").write_text('{"architectures": ["BertModel"]}')
    lines = (Line(FLOAT, 90.9, {"1x64": 11.0, "8x64": 90.0}), Line(INT8, 23.1, {"1x64": 8.0, "8x64": 88.0}, error=0.1))
    speeds = {"1x64": (1.38, 1.3, 1.45), "8x64": (1.02, 0.97, 1.08)}
    found = Quantized(out, "model", "int8_linear", "onnxruntime", lines, speeds, "36 of 38 linear layers in INT8", 256,
                      "a CPU", notes=("the recipe was chosen",))  # fmt: skip
    for name, text in (("hackathon", contest), ("folder", render_page(document(found, "model.onnx"), {}))):
        (out / f"{name}.html").write_text(text, encoding="utf-8")
    return {"report": REPORTS / "minilm" / "report.html", "float": REPORTS / "minilm-h200" / "report.html",
            "search": REPORTS / "search-minilm" / "search.html", "hackathon": out / "hackathon.html",
            "folder": out / "folder.html"}  # fmt: skip


def show(browser, path, width=1100, scheme="light", media="", fragment=""):
    """Open a page anew, on a screen of that width."""
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": width, "height": 900,
                            "deviceScaleFactor": 1, "mobile": False})  # fmt: skip
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": [
                            {"name": "prefers-color-scheme", "value": scheme}]})  # fmt: skip
    browser.get("about:blank")
    browser.get(path.as_uri() + fragment)


def open_all(browser):
    browser.execute_script("document.querySelectorAll('details').forEach((each) => { each.open = true; })")


@pytest.mark.parametrize("name", PAGES)
def test_a_page_loads_nothing_says_nothing_and_fits_every_screen(browser, pages, name):
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    for width in WIDTHS:
        show(browser, pages[name], width)
        open_all(browser)
        across = browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
        assert across[0] <= across[1] == width
    assert browser.get_log("browser") == []
    asked = [each["message"] for each in browser.get_log("performance") if "Network.requestWillBeSent\"" in
             each["message"]]  # fmt: skip
    assert asked and all('"url":"file://' in each or '"url":"data:' in each or '"url":"about:' in each
                         for each in asked)  # fmt: skip
    assert browser.execute_script("return document.styleSheets.length") == 1
    assert browser.execute_script("return getComputedStyle(document.body).maxWidth") != "none"  # the policy lets it in


@pytest.mark.parametrize("name", PAGES)
def test_every_table_sorts_both_ways_by_numbers_and_comes_back(browser, pages, name):
    show(browser, pages[name])
    tables = browser.execute_script(TABLES)
    assert any(any(table["numeric"]) for table in tables)
    for number, table in enumerate(tables):
        for column, is_numeric in enumerate(table["numeric"]):
            if not table["buttons"][column]:
                continue
            before = browser.execute_script(COLUMN, number, column)["cells"]
            browser.execute_script(CLICK, number, column)
            up = browser.execute_script(COLUMN, number, column)
            browser.execute_script(CLICK, number, column)
            down = browser.execute_script(COLUMN, number, column)
            browser.execute_script(CLICK, number, column)
            after = browser.execute_script(COLUMN, number, column)
            assert (up["state"], down["state"], after["state"]) == ("ascending", "descending", None)
            assert after["cells"] == before and sorted(map(str, up["cells"])) == sorted(map(str, before))
            if is_numeric:
                values = [float(value) for value, _ in before if value is not None]
                for found, wanted in ((up, sorted(values)), (down, sorted(values, reverse=True))):
                    assert [float(value) for value, _ in found["cells"][: len(values)]] == wanted
                    assert all(value is None for value, _ in found["cells"][len(values) :])
            else:
                texts = [text for _, text in before]
                assert [natural(text) for _, text in up["cells"]] == sorted(map(natural, texts))
                assert [natural(text) for _, text in down["cells"]] == sorted(map(natural, texts), reverse=True)


def natural(text):
    """Return a key by which 1x64 comes before 1x128, and case counts last."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part.lower()) for part in re.split(r"(\d+)", text) if part]


def test_a_number_is_sorted_as_a_number_and_what_was_not_measured_stands_last(browser, pages):
    show(browser, pages["report"])
    heads = browser.execute_script("return [...document.querySelectorAll('#configurations th button')].map("
                                   "(each) => each.textContent)")  # fmt: skip
    column = next(i for i, head in enumerate(heads) if head.startswith("ms"))
    browser.execute_script(CLICK, 0, column)
    cells = [text for _, text in browser.execute_script(COLUMN, 0, column)["cells"]]
    times = [float(cell.split()[0]) for cell in cells]
    assert times == sorted(times) and times[0] < 100 <= times[-1] and cells != sorted(cells)
    show(browser, pages["float"])
    browser.execute_script(CLICK, 0, column)
    for _ in range(2):
        cells = [text for _, text in browser.execute_script(COLUMN, 0, column)["cells"]]
        assert cells[-2:] == ["-", "-"] and "-" not in cells[:-2]
        browser.execute_script(CLICK, 0, column)


def test_a_head_is_sorted_by_the_keyboard(browser, pages):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    show(browser, pages["report"])
    head = browser.find_element(By.CSS_SELECTOR, "#configurations thead th")
    button = head.find_element(By.TAG_NAME, "button")
    button.send_keys(Keys.ENTER)
    assert head.get_attribute("aria-sort") == "ascending"
    button.send_keys(Keys.SPACE)
    assert head.get_attribute("aria-sort") == "descending"


def test_a_link_to_a_row_opens_what_folds_it(browser, pages):
    shown = "return document.querySelector('#row-12').checkVisibility({contentVisibilityAuto: true})"
    show(browser, pages["report"])
    assert not browser.execute_script(shown)
    browser.execute_script("document.querySelector('#configurations a[href=\"#row-12\"]').click()")
    assert browser.execute_script("return document.querySelector('#rows').open") and browser.execute_script(shown)
    show(browser, pages["report"], fragment="#row-12")
    assert browser.execute_script("return document.querySelector('#rows').open")
    top = browser.execute_script("return document.querySelector('#row-12').getBoundingClientRect().top")
    assert 0 <= top < 900


@pytest.mark.parametrize("has_script", [True, False])
def test_print_shows_what_is_folded_and_no_arrows(browser, pages, has_script):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not has_script})
    try:
        show(browser, pages["report"], media="print")
        hidden = browser.execute_script(
            "return [...document.querySelectorAll('details *')].filter((each) => each.closest('svg') === null && "
            "!each.closest('.on-narrow') && !each.checkVisibility({contentVisibilityAuto: true})).length")  # fmt: skip
        assert hidden == 0
        assert browser.execute_script("return getComputedStyle(document.querySelector('nav')).display") == "none"
        assert browser.execute_script("return document.querySelectorAll('button').length > 0") == has_script
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


@pytest.mark.skipif(AXE is None, reason="no axe-core: npm install axe-core, or AXE_CORE=PATH/axe.min.js")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_no_violation(browser, pages, name, scheme):
    show(browser, pages[name], scheme=scheme)
    open_all(browser)
    browser.execute_script(AXE.read_text(encoding="utf-8"))
    found = browser.execute_async_script("const done = arguments[0]; axe.run().then(done)")
    assert any(rule["id"] == "color-contrast" for rule in found["passes"])
    assert [(rule["id"], [node["target"] for node in rule["nodes"]][:3]) for rule in found["violations"]] == []


def test_a_plot_that_is_checked_only_has_no_ink():
    data = read_run(REPORTS / "minilm-h200")
    page = build(data, {"pareto": Plot("", b"")}, "plain", "en", 0.01)[1]
    assert page.count("<svg></svg>") == 2
