"""report.html: one file whose texts stay texts, with everything in it without its script."""

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest
import torch
from compared_policies import HOSTILE, NAMES, compared

from openrlhf_gpm.winrate.answers import Answers, Judged
from openrlhf_gpm.winrate.drawing import graph
from openrlhf_gpm.winrate.measure import measure
from openrlhf_gpm.winrate.page import PROMPTS, page
from openrlhf_gpm.winrate.texts import Answered, AnswerFile

VOID = {"meta", "input", "path", "circle", "img"}


class Page(HTMLParser):
    """The elements of a page with their attributes and texts, and what is not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.texts.append((self.open[-1], data))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def of(self, tag: str) -> list[str]:
        return [text for name, text in self.texts if name == tag]


@pytest.fixture(scope="module")
def text() -> str:
    return page(*compared())


@pytest.fixture(scope="module")
def parsed(text: str) -> Page:
    return Page(text)


def test_whatever_prompts_answers_names_and_warnings_say_is_shown_as_text(parsed: Page):
    assert parsed.open == []
    assert len(parsed.all("script")) == len(parsed.all("style")) == 1
    assert parsed.all("img") == parsed.all("b") == []
    assert not [key for _, attributes in parsed.elements for key in attributes if key.startswith("on")]
    shown = parsed.of("pre")
    assert f"3 {HOSTILE}" in shown
    assert {f"{name} {HOSTILE}" for name in NAMES} <= set(shown)
    assert f"warned {HOSTILE}" in parsed.of("li")
    assert {NAMES[1], f"maths {HOSTILE}"} <= set(parsed.of("option"))
    assert f"maths {HOSTILE}" in parsed.of("th")


def test_nothing_is_loaded_and_only_the_pages_own_script_may_run(text: str, parsed: Page):
    loading = {"src", "srcset", "action", "data", "poster", "background", "ping"}
    assert not [key for _, attributes in parsed.elements for key in attributes if key in loading]
    assert all(attributes["href"].startswith("#") for attributes in parsed.all("a"))
    assert parsed.all("link") == []
    (style,) = parsed.of("style")
    assert "url(" not in style
    assert "@import" not in style
    (script,) = parsed.of("script")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [meta["content"] for meta in parsed.all("meta") if meta.get("http-equiv")]
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert not re.search(r"innerHTML|insertAdjacent|document\.write|eval\(|fetch\(", script)


def test_the_page_says_the_findings_without_its_script(parsed: Page):
    said = " ".join(parsed.of("li"))
    assert "No policy beats all others." in said
    assert "scissors beats" in said
    assert "Cyclic share 0.96" in said
    assert "The mixture that none of them beats: 36.4 % rock" in said
    bodies = [each for each in parsed.all("tbody") if "data-rates" in each]
    assert len(bodies) == 12
    assert [body["data-best"] for body in bodies] == ["1", *["tie"] * 11]
    assert [text for text in parsed.of("td") if text in (*NAMES, "a tie")] == [NAMES[1], *["a tie"] * 11]
    assert not [each for _, each in parsed.elements if "hidden" in each]  # the script folds


def test_what_the_script_looks_for_is_on_the_page(text: str, parsed: Page):
    ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    (script,) = parsed.of("script")
    for name in ("search", "best", "subset", "first", "second", "count", "prompts", "pair-head", "controls"):
        assert f'"{name}"' in script
        assert name in ids
    heads = [attributes["data-key"] for attributes in parsed.all("th") if "data-key" in attributes]
    assert heads == ["number", "rate", "pair", "cyclic"]
    assert {each["aria-controls"] for each in parsed.all("button") if "aria-controls" in each} <= set(ids)
    labelled = [each for each in parsed.all("section") if each["aria-labelledby"] in ids]
    assert len(labelled) == len(parsed.all("section"))


def test_each_pair_has_its_effective_number_of_prompts(parsed: Page):
    metrics, rows, texts = compared()
    assert "N_eff" in parsed.of("th")
    shown = Page(page(metrics | {"n_eff": [[None, 77.4, 12.0], [77.4, None, None], [12.0, None, None]]}, rows, texts))
    assert "77" in shown.of("td")


def test_prompts_can_be_filtered_by_subset_and_subsets_have_a_table(parsed: Page):
    options = [each["value"] for each in parsed.all("option")]
    bodies = [each["data-subset"] for each in parsed.all("tbody") if "data-rates" in each]
    assert bodies == ["", "", "", "", *["poems", f"maths {HOSTILE}"] * 4]
    assert set(bodies) <= set(options)
    assert "By subset" in parsed.of("h2")
    metrics, rows, texts = compared()
    assert {name: found["prompts"] for name, found in metrics["by_subset"].items()} == {
        f"maths {HOSTILE}": 4,
        "poems": 4,
    }
    plain = Page(page(metrics | {"by_subset": {}}, rows, texts))
    assert "By subset" not in plain.of("h2")


def test_the_cells_of_the_matrix_lead_to_the_pair_and_are_coloured_by_value(parsed: Page):
    links = {(each["data-first"], each["data-second"]) for each in parsed.all("a")}
    assert links == {(i, j) for i in "012" for j in "012" if i != j}
    assert {each.get("class") for each in parsed.all("a")} == {"sure"}
    cells = [each for each in parsed.all("td") if each.get("class") in ("win", "lose")]
    assert all(0 <= float(each["style"].removeprefix("--by:")) <= 1 for each in cells)


def test_a_long_comparison_shows_its_first_prompts_and_says_so():
    parsed = Page(page(*compared(PROMPTS + 1, "")))
    assert len([each for each in parsed.all("tbody") if "data-rates" in each]) == PROMPTS
    assert any(f"The first {PROMPTS} of {PROMPTS + 1} prompts" in said for said in parsed.of("p"))


def test_two_policies_need_no_picture():
    pair = [
        Answers(name, {"p": Judged(torch.tensor([[r, 1.0]]), torch.ones(1), 0.0)}) for name, r in (("a", 1), ("b", 0))
    ]
    files = [AnswerFile(each.policy, "f", {"p": Answered("p", ["text"], ["f:1"])}) for each in pair]
    metrics, rows = measure(files, pair)
    parsed = Page(page(metrics, rows, [{"a": ["text"], "b": ["text"]}]))
    assert not [each for each in parsed.all("svg") if "aria-label" in each]
    assert "a beats b; there are no intervals to say how surely." in parsed.of("li")


def test_the_picture_has_an_arrow_from_every_winner_and_dashes_where_it_is_not_sure():
    rates = [[0.5, 0.7, 0.5], [0.3, 0.5, 0.6], [0.5, 0.4, 0.5]]
    ci95 = [[[r - 0.15, r + 0.15] for r in row] for row in rates]
    drawn = Page(graph(["a", "b", "c"], rates, ci95))
    edges = [each for each in drawn.all("path") if each.get("class") == "edge"]
    assert ["stroke-dasharray" in each for each in edges] == [False, True]
    assert drawn.all("svg")[0]["aria-label"] == "a beats b, 70 %; b beats c, 60 %"
