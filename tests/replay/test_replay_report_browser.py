"""The report in a headless Chromium: read, driven by pointer and keys, and checked by axe-core."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from replay_demo_run import write_demo_run
from replay_report_page import hostile_run, report

from nae_monitor.recording import Recording, RecordingWriter, RequestRecord
from nae_monitor.records import (
    Activation,
    Coverage,
    Decoding,
    Finding,
    FindingState,
    Phase,
    Request,
    SampleReason,
    Severity,
    Span,
    VerdictState,
)

playwright = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on this machine: the page was not opened in a browser"
)
LONG = ("Tell me a very long story. " * 20, "Once upon a time there was a mill. " * 400)
# What axe calls minor and moderate is advice; these two shut people out.
GRAVE = ("serious", "critical")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("browser") / "run"
    write_demo_run(path, extra=[LONG])
    report(path)
    return path


@pytest.fixture
def page(browser: Any, run: Path) -> Iterator[Any]:
    yield from opened(browser, run)


def opened(browser: Any, run: Path, fragment: str = "", **options: Any) -> Iterator[Any]:
    """The report of ``run`` in a window of its own; whatever its script throws fails the test."""
    window = browser.new_page(viewport={"width": 1280, "height": 900}, **options)
    faults: list[str] = []
    window.on("pageerror", lambda error: faults.append(str(error)))
    window.on("request", lambda asked: faults.append(asked.url) if "file:" not in asked.url else 0)
    window.set_default_timeout(10_000)
    window.goto((run.parent / "report.html").as_uri() + fragment)
    yield window
    window.close()
    assert faults == []


def draw_all(page: Any) -> None:
    """As printing does: every conversation with all of its tokens."""
    page.evaluate("dispatchEvent(new Event('beforeprint'))")


def shown(page: Any, selector: str) -> list[Any]:
    return [node for node in page.locator(selector).all() if node.get_attribute("hidden") is None]


def first_match(page: Any) -> Any:
    page.locator("#c0").scroll_into_view_if_needed()
    return page.locator("#c0 .tok[data-m]:not([data-m=undecided])").first


def grave(violations: list[Any]) -> list[Any]:
    """Which rules of axe, and where on the page."""
    return [
        (found["id"], [(n["html"][:90], n["any"][0]["message"][:90]) for n in found["nodes"][:4]])
        for found in violations
        if found["impact"] in GRAVE
    ]


def test_every_row_of_the_recording_is_a_token_of_its_conversation(page: Any, run: Path) -> None:
    draw_all(page)
    drawn = page.evaluate(
        "[...document.querySelectorAll('.tok')].map(n => [n.conversation.id, n.row.p])"
    )
    rows = [
        (row.activation.request.request_id, row.activation.position)
        for row in Recording.open(run).activations()
    ]
    assert sorted(map(tuple, drawn)) == sorted(rows)


def test_an_explanation_shows_on_hover_and_stays_when_pinned(page: Any) -> None:
    page.locator("#c0").scroll_into_view_if_needed()
    token, other = page.locator("#c0 .tok").nth(0), page.locator("#c0 .tok").nth(1)
    details = page.locator("#inspector")
    text = "document.querySelectorAll('#c0 .tok')[{}].row.text"
    token.hover()
    assert page.evaluate(text.format(0)) in details.inner_text()
    other.hover()
    assert page.evaluate(text.format(1)) in details.inner_text()
    token.click()
    assert token.get_attribute("aria-pressed") == "true"
    other.hover()
    assert page.evaluate(text.format(0)) in details.inner_text()
    details.get_by_role("button", name="Unpin").click()
    assert token.get_attribute("aria-pressed") == "false"
    other.hover()
    assert page.evaluate(text.format(1)) in details.inner_text()


def test_an_alert_leads_to_its_token_and_the_token_back_to_the_alert(page: Any) -> None:
    alert = page.locator("#a0")
    alert.locator(".alert-where a").click()
    pinned = page.locator(".tok[aria-pressed=true]")
    assert pinned.evaluate("n => n === document.activeElement")
    wanted = alert.locator(".alert-where a").get_attribute("href")
    assert f"#{pinned.get_attribute('id')}" == wanted
    finding = page.locator("#inspector .i-find > li", has_text=alert.locator("h3").inner_text())
    finding.get_by_role("link", name="to the alert").first.click()
    assert alert.evaluate("n => n === document.activeElement")
    assert page.url.endswith("#a0")


def test_a_link_into_the_page_opens_at_its_token(browser: Any, run: Path) -> None:
    link = next(
        a["href"] for tag, a in report(run).tags if (a.get("href") or "").startswith("#c1-p")
    )
    for window in opened(browser, run, link or ""):
        (pinned,) = window.locator(".tok[aria-pressed=true]").all()
        assert f"#{pinned.get_attribute('id')}" == link
        assert "Unpin" in window.locator("#inspector").inner_text()


def test_evidence_names_selection_and_words(page: Any) -> None:
    first_match(page).click()
    proof = page.locator("#inspector .proofs li").first
    assert proof.locator(".mono").inner_text() == "theme"
    assert proof.locator("q").inner_text() in page.locator("#inspector .i-text mark").inner_text()


def test_words_found_in_what_was_said_are_marked_there_while_pinned(
    browser: Any, tmp_path: Path
) -> None:
    said = ["\n", "I", " write", " \u202e a", " key", "logger", " now"]
    text = "".join(said)
    start = text.index("a key")
    span = Span("tool", "output", start, start + len("a keylog"), "a keylog")
    request = Request("r1", "r1", "m")
    with RecordingWriter(tmp_path / "run", manifest={}, d_model=1, content="full") as writer:
        row = Activation(
            request, 5, 1, " key", Phase.COMPLETION, 3, torch.ones(1), SampleReason.RANDOM
        )
        writer.write_activation(row, Decoding("text", True, 0.1, 0.2, 1, 256, "nla", 1, 0.1))
        match = FindingState.MATCH
        writer.write_findings([Finding("r1", 5, "1", "n", "1", "T", Severity.LOW, match, (span,))])
        writer.write_request(
            RequestRecord(
                request, "Hi", 1, len(said), Coverage(8, 8, 1, 1, 1, 0, {}), VerdictState.ALERT,
                prompt_token_texts=("Hi",), output_token_texts=tuple(said),
            )
        )  # fmt: skip
    report(tmp_path / "run")
    marked = "() => [...(CSS.highlights.get('evidence') ?? [])].map(String)"
    for window in opened(browser, tmp_path / "run", "#c0-p5"):
        assert window.evaluate(marked) == [" ⟨U+202E⟩ a keylogger"]  # whole tokens
        window.keyboard.press("Escape")
        assert window.evaluate(marked) == []


def test_each_colouring_colours_by_its_own_figure(page: Any) -> None:
    draw_all(page)
    for mode, told in (("score", "data-z"), ("fidelity", "data-b"), ("findings", "data-m")):
        page.locator(f"[name=mode][value={mode}] + span").click()
        colours: dict[str, set[str]] = {}
        for step, colour in page.evaluate(
            "told => [...document.querySelectorAll('#list .tok[data-d=\"1\"]:not(.sp)')].map(n =>"
            " [n.getAttribute(told), getComputedStyle(n).backgroundColor])",
            told,
        ):
            colours.setdefault(step or "", set()).add(colour)
        assert len(colours) > 3, mode
        assert all(len(found) == 1 for found in colours.values()), mode
        assert len(set.union(*colours.values())) > 3, mode


def test_scores_can_be_told_by_one_direction(page: Any) -> None:
    draw_all(page)
    page.locator("[name=mode][value=score] + span").click()
    page.locator("#direction").select_option(label="fraud_intent")
    steps = page.evaluate(
        "[...document.querySelectorAll('.tok')].map(n => [n.dataset.z !== '',"
        " n.row.scores.some(([i]) => document.getElementById('direction').value === String(i))])"
    )
    assert {coloured for coloured, _ in steps} == {True, False}
    assert all(coloured == scored for coloured, scored in steps)


def test_filters_leave_the_alerts_and_conversations_that_fit(page: Any, run: Path) -> None:
    recording = Recording.open(run)
    records = {record.request.request_id: record for record in recording.requests()}
    matched = {
        (f.request_id, f.rule_name) for f in recording.findings() if f.state is FindingState.MATCH
    }
    rule = sorted(name for _, name in matched)[0]
    of_rule = {request for request, name in matched if name == rule}
    requests = {name: record.request for name, record in records.items()}

    def expect(fitting: set[str], alerts: set[tuple[str, str]]) -> None:
        names = {n.get_attribute("aria-label") for n in shown(page, ".conv")}
        assert names == {f"Conversation {name}" for name in fitting}
        assert {
            (n.locator(".alert-where .mono").inner_text(), n.get_attribute("data-rule"))
            for n in shown(page, "ol.alerts > .alert")
        } == alerts
        page.locator("#f-clear").click()

    page.locator("#f-rule").select_option(rule)
    expect(of_rule, {(request, name) for request, name in matched if name == rule})
    page.locator("#f-model").select_option("smollm2-360m-instruct")
    of_model = {name for name, r in requests.items() if r.model == "smollm2-360m-instruct"}
    expect(of_model, {m for m in matched if m[0] in of_model})
    page.locator("#f-tenant").select_option("globex")
    of_tenant = {name for name, r in requests.items() if r.tenant == "globex"}
    expect(of_tenant, {m for m in matched if m[0] in of_tenant})
    page.locator("#f-text").fill("KEYLOGGER")
    said = {name for name, r in records.items() if "keylogger" in (r.prompt_text or "").lower()}
    expect(said, {m for m in matched if m[0] in said})
    assert len(shown(page, ".conv")) == len(records)


def test_a_bar_of_the_time_line_narrows_to_its_stretch_of_time(page: Any) -> None:
    bar = page.locator(".stack .bin").first
    count = sum(
        int(re.findall(r"UTC: (\d+)", text)[0])
        for text in page.locator(
            f".stack .bin[data-bin='{bar.get_attribute('data-bin')}'] title"
        ).all_text_contents()
    )
    bar.click()
    assert len(shown(page, "ol.alerts > .alert")) == count
    assert "Filtered by from 2026" in page.locator("#f-said").inner_text()
    page.locator("#f-from").fill("2031-01-01T00:00:00")
    assert not shown(page, ".conv")
    assert page.locator("#nothing").is_visible()
    page.get_by_role("button", name="Clear").click()
    assert len(shown(page, ".conv")) == 25


def test_the_page_is_worked_by_keys_alone(page: Any) -> None:
    page.keyboard.press("n")
    first = page.locator(".tok[aria-pressed=true]").get_attribute("id")
    page.keyboard.press("n")
    second = page.locator(".tok[aria-pressed=true]").get_attribute("id")
    assert first != second
    page.keyboard.press("p")
    assert page.locator(".tok[aria-pressed=true]").get_attribute("id") == first
    page.keyboard.press("ArrowRight")
    assert page.locator(".tok[aria-pressed=true]").get_attribute("id") != first
    page.keyboard.press("Escape")
    assert page.locator(".tok[aria-pressed=true]").count() == 0
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    assert page.locator(".tok[aria-pressed=true]").evaluate("n => n.conversation.tokens[0] === n")
    page.keyboard.press("c")
    assert page.evaluate("document.body.dataset.mode") == "score"
    page.keyboard.press("/")
    assert page.locator("#f-text").evaluate("n => n === document.activeElement")
    page.keyboard.type("?n")
    assert page.locator("#f-text").input_value() == "?n"


def test_single_keys_can_be_switched_off(page: Any) -> None:
    page.keyboard.press("?")
    assert page.locator("#keys").is_visible()
    page.locator("#letters").uncheck()
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    assert not page.locator("#keys").is_visible()
    page.locator("#help").click()
    page.locator("#letters").check()


def test_a_long_conversation_is_drawn_whole_when_it_is_asked_for(page: Any) -> None:
    page.locator("#f-text").fill("there was a mill")
    (long,) = shown(page, ".conv")
    long.scroll_into_view_if_needed()
    more = long.get_by_role("button", name="Show the whole")
    more.wait_for()
    assert 0 < long.locator(".tok").count() < long.evaluate("n => n.conversation.rows.length")
    more.click()
    assert long.locator(".tok").count() == long.evaluate("n => n.conversation.rows.length")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious_in_any_colouring(browser: Any, run: Path, theme: str) -> None:
    for window in opened(browser, run, color_scheme=theme):
        window.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        first_match(window).click()
        # The first ones are enough of a kind, and all are slow to go through.
        window.evaluate(
            "document.querySelectorAll('.conv:nth-child(n+7), .alert:nth-child(n+7)')"
            ".forEach(n => n.remove())"
        )
        assert grave(axe.Axe().run(window).response["violations"]) == []
        for mode in ("score", "fidelity", "decoded"):
            window.locator(f"[name=mode][value={mode}] + span").click()
            found = axe.Axe().run(window, context="#conversations").response["violations"]
            assert grave(found) == [], mode
        window.locator("#help").click()
        dialog = axe.Axe().run(window, context="#keys").response["violations"]
        assert grave(dialog) == []


def test_axe_finds_nothing_serious_on_a_phone_or_in_a_run_without_text(
    browser: Any, tmp_path: Path
) -> None:
    write_demo_run(tmp_path / "run", conversations=4, content="hash")
    report(tmp_path / "run")
    for window in opened(browser, tmp_path / "run", color_scheme="dark"):
        window.set_viewport_size({"width": 390, "height": 844})
        first_match(window).click()
        found = axe.Axe().run(window).response["violations"]
        assert grave(found) == []
        wide = window.evaluate("document.documentElement.scrollWidth")
        assert wide <= 390  # nothing is wider than the screen


def test_print_holds_the_explanations_of_findings_and_says_what_was_filtered(
    page: Any, tmp_path: Path
) -> None:
    page.locator("#f-severity").select_option("high")
    count = len(shown(page, ".conv"))
    assert 0 < count < 25
    text = first_match(page).evaluate("n => n.row.text")
    pdf = page.pdf()
    assert pdf.startswith(b"%PDF")
    page.emulate_media(media="print")
    draw_all(page)
    assert text in page.locator("#c0 .notes").inner_text()
    assert page.locator("#f-said").is_visible()
    assert "Filtered by severity high" in page.locator("#f-said").inner_text()
    assert not page.locator("#f-severity").is_visible()
    assert not page.locator("#inspector").is_visible()
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator(".notes").count() == 0


def test_the_theme_can_be_chosen_against_the_system(page: Any) -> None:
    def background() -> str:
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    light = background()
    page.locator("#theme").click()
    assert background() == light
    page.locator("#theme").click()
    assert page.locator("#theme").inner_text() == "Theme: dark"
    assert background() != light
    page.locator("#theme").click()


def test_a_file_of_bare_vectors_is_shown_and_nothing_is_claimed_of_it(
    browser: Any, tmp_path: Path
) -> None:
    vectors = pa.FixedSizeListArray.from_arrays(pa.array([0.5] * 80, pa.float32()), 8)
    pq.write_table(pa.table({"activation_vector": vectors}), tmp_path / "vectors.parquet")
    text = " ".join(report(tmp_path / "vectors.parquet").text.split())
    assert "Nothing was judged." in text
    assert "No ledger is on record." in text
    assert "Every rule had an answer" not in text
    assert "Nothing was lost" not in text
    for window in opened(browser, tmp_path / "vectors.parquet"):
        window.locator("#list").scroll_into_view_if_needed()
        window.locator(".tok").first.click()
        assert "chosen by unknown" in " ".join(window.locator("#inspector").inner_text().split())
        assert window.locator(".tok").count() == 10


@pytest.mark.parametrize("finished", [False, True])
def test_a_browser_runs_no_script_that_came_with_the_data(
    browser: Any, tmp_path: Path, finished: bool
) -> None:
    hostile_run(tmp_path / "run", finished=finished)
    report(tmp_path / "run")
    for window in opened(browser, tmp_path / "run", "#c0-p0"):
        window.locator("[name=mode][value=score] + span").click()
        draw_all(window)
        window.locator("#f-text").fill("onerror")
        assert "pwned" not in window.title().split("·")[0]
        assert window.evaluate("document.scripts.length") == 2
        assert window.locator("img").count() == 0
        html = window.content()
        said = window.locator("body").inner_text()
        assert "\u202e" not in html  # its right-to-left override is written out instead
        assert "⟨U+202E⟩" in said
        assert said.count("onerror") > 3  # shown, as text, in alert, conversation and details
        assert len(json.loads(window.locator("#data").text_content())["conversations"]) >= 1
