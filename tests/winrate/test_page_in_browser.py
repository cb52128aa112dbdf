"""report.html in a real browser: it sorts, filters and opens, by mouse and by keyboard, and asks for nothing."""

import json

import pytest
from compared_policies import HOSTILE, NAMES, compared

from openrlhf_gpm.winrate.page import page

SEED = 3


@pytest.fixture(scope="module")
def rows():
    return compared(seed=SEED)[1]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(page(*compared(seed=SEED)), encoding="utf-8")
    return path


@pytest.fixture
def report(file, open_tab):
    """Opens the report in a new tab; in the end it asked for nothing but itself."""
    tabs = []

    def report(**options):
        tabs.append(open_tab(**options))
        tabs[-1].page.goto(file.as_uri())
        return tabs[-1].page

    yield report
    assert [tab.requests for tab in tabs] == [[file.as_uri()]] * len(tabs)


def shown(page):
    """The numbers of the prompts that can be seen, in their order."""
    return [int(text.split()[0]) for text in page.locator("#prompts tbody:visible .open").all_inner_texts()]


def by(rows, value):
    """The prompts in order of a value, ties by number."""
    return sorted(range(len(rows)), key=lambda n: (value(rows[n]), n))


def test_prompts_are_sorted_by_each_column_up_and_down(report, rows):
    tab = report()
    assert shown(tab) == list(range(12))
    columns = {
        "Best": lambda row: row["win_rate"],
        "against": lambda row: row["win_rates"][0][1],
        "Cyclic": lambda row: row["cyclic_share"],
    }
    for name, value in columns.items():
        head = tab.locator("#prompts thead th", has_text=name)
        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") == "descending"
        assert shown(tab) == by(rows, lambda row, value=value: -value(row))
        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") == "ascending"
        assert shown(tab) == by(rows, value)
    tab.get_by_role("button", name="Prompt", exact=True).click()
    assert shown(tab) == list(range(12))


def test_the_pair_is_chosen_from_the_lists_or_by_a_number_of_the_matrix(report, rows):
    tab = report()
    tab.get_by_role("combobox", name="Win rate of").select_option(NAMES[2])
    tab.get_by_role("combobox", name="against").select_option(NAMES[1])
    cells = tab.locator("#prompts .of-pair").all_inner_texts()
    assert cells == [f"{100 * row['win_rates'][2][1]:.1f}" for row in rows]
    tab.locator(".matrix a[data-first='1'][data-second='0']").first.click()
    assert tab.locator("#pair-head").inner_text() == f"{NAMES[1]} against {NAMES[0]}, %"
    assert shown(tab) == by(rows, lambda row: -row["win_rates"][1][0])
    assert tab.evaluate("document.getElementById('prompts-title').getBoundingClientRect().top") < 900


def test_prompts_are_found_by_text_by_the_best_policy_and_by_subset(report, rows):
    tab = report()
    count = tab.get_by_role("status")
    assert count.inner_text() == "12 prompts"
    tab.get_by_role("combobox", name="Best").select_option(NAMES[0])
    assert shown(tab) == [n for n, row in enumerate(rows) if row["best"] == NAMES[0]] != []
    tab.get_by_role("combobox", name="Best").select_option("any")
    tab.get_by_role("combobox", name="Subset").select_option("poems")
    assert shown(tab) == [4, 6, 8, 10]
    assert count.inner_text() == "4 of 12 prompts"
    tab.get_by_role("searchbox").fill("  8 </PRE>")
    assert shown(tab) == [8]
    tab.get_by_role("searchbox").fill("not there")
    assert shown(tab) == []
    assert count.inner_text() == "0 of 12 prompts"


def test_a_prompt_opens_to_its_answers_and_its_matrix_by_keyboard(report, rows):
    tab = report()
    assert tab.locator("tr.detail:visible").count() == 0
    tab.get_by_role("button", name="Cyclic share").focus()
    tab.keyboard.press("Tab")
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.innerText") == f"1 {HOSTILE}"
    tab.keyboard.press("Enter")
    detail = tab.locator("tr.detail:visible")
    assert tab.evaluate("document.activeElement.getAttribute('aria-expanded')") == "true"
    assert detail.locator(".texts pre").all_inner_texts() == [f"{name} {HOSTILE}" for name in NAMES]
    assert detail.locator(".asked pre").all_inner_texts() == [f"1 {HOSTILE}"]
    cells = detail.locator(".matrix td").all_inner_texts()
    rates = rows[1]["win_rates"]
    assert cells == ["–" if i == j else f"{100 * rates[i][j]:.1f}" for i in range(3) for j in range(3)]
    tab.keyboard.press("Space")
    assert tab.locator("tr.detail:visible").count() == 0


def test_texts_stay_texts(report):
    tab = report()
    tab.locator("#prompts .open").first.click()
    assert [tab.locator(tag).count() for tag in ("script", "img", "b")] == [1, 0, 0]
    assert tab.get_by_text(f"warned {HOSTILE}").is_visible()
    assert tab.title() == f"Win rates: {', '.join(NAMES)}"


def test_without_scripts_everything_can_be_read(report):
    tab = report(java_script_enabled=False)
    assert tab.locator("tr.detail:visible").count() == 12


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_readable_by_day_and_night_on_a_screen_and_a_phone(report, contrast, scheme, width):
    tab = report(scheme=scheme, width=width)
    background = json.loads(tab.evaluate("JSON.stringify(getComputedStyle(document.body).backgroundColor)"))
    assert (background == "rgb(20, 23, 26)") == (scheme == "dark")
    tab.locator("#prompts .open").first.click()
    for selector in ("h1", ".lead", "li", ".note", ".matrix a", ".warnings li", "pre", "#count", "label"):
        for element in tab.locator(selector).all():
            assert contrast(element) >= 4.5, selector
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
