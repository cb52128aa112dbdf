"""The page of `serve --ui` in a real browser, against a real server: its numbers are the scorer's."""

import numpy as np
import pytest
from compared_policies import HOSTILE
from served import KEY

PROMPT = "Name a prime."
RESPONSES = ["Seven.", "Nine, I think.", "Two. It is the only even one."]


@pytest.fixture
def ui(open_tab):
    """Opens a server's page in a new tab; in the end it asked for nothing that is not the server's."""
    opened = []

    def ui(served, **options):
        opened.append((served, open_tab(**options)))
        page = opened[-1][1].page
        page.goto(served.url)
        page.get_by_text("fingerprint").wait_for()
        return page

    yield ui
    for served, tab in opened:
        assert {address.removeprefix(served.url) for address in tab.requests} <= {"/", "/health", "/score"}


def fill(page, prompt, responses):
    page.get_by_label("Prompt").fill(prompt)
    boxes = page.locator(".response textarea")
    while boxes.count() < len(responses):
        page.get_by_role("button", name="Add a response").click()
    for box, response in zip(boxes.all(), responses, strict=True):
        box.fill(response)


def compare(page):
    page.get_by_role("button", name="Compare").click()
    page.locator("#results, #error").locator("visible=true").wait_for()


def test_a_group_is_compared_by_keyboard_alone(server, gpm, ui):
    page = ui(server)
    page.get_by_label("Prompt").focus()
    page.keyboard.type(PROMPT)
    for response in RESPONSES[:2]:
        page.keyboard.press("Tab")  # to the button that removes the response
        page.keyboard.press("Tab")
        page.keyboard.type(response)
    for _ in range(4):  # system message, key, Compare, Add
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.keyboard.type(RESPONSES[2])
    page.keyboard.press("Control+Enter")
    page.locator("#results").wait_for()
    assert page.evaluate("document.activeElement.textContent") == "Findings"
    expected = gpm.score(PROMPT, RESPONSES)
    assert page.get_by_role("status").inner_text() == "3 responses compared."
    cells = page.locator("#matrix td").all_inner_texts()
    probs = expected["probs"]
    assert cells == ["–" if i == j else f"{100 * probs[i][j]:.1f}" for i in range(3) for j in range(3)]
    order = expected["ranking"]
    rows = [row.locator("th, td").all_text_contents() for row in page.locator("#ranking tbody tr").all()]
    assert rows == [
        [
            str(i + 1),
            f"{expected['mean_scores'][i]:.2f}",
            f"{100 * expected['win_rates'][i]:.1f}",
            f"{100 * expected['von_neumann'][i]:.1f}",
            RESPONSES[i],
        ]
        for i in order
    ]
    assert f"Response {order[0] + 1} has the highest mean score" in page.locator("#findings").inner_text()


def test_the_circles_show_each_plane_of_the_embeddings_with_its_part_in_the_scores(server, gpm, ui):
    page = ui(server)
    fill(page, PROMPT, RESPONSES)
    compare(page)
    expected = gpm.score(PROMPT, RESPONSES)
    planes = np.array(expected["embeddings"]).reshape(3, 3, 2).transpose(1, 0, 2)  # plane, response, axis
    reach = np.linalg.norm(planes, axis=-1).max()
    for l, figure in enumerate(page.locator("#planes figure").all()):
        points = [[float(dot.get_attribute(name)) for name in ("cx", "cy")] for dot in figure.locator(".node").all()]
        np.testing.assert_allclose(points, planes[l] * [100, -100] / reach, atol=0.06)
    a, b = planes[..., 0], planes[..., 1]
    gate = np.array(expected["gate"])
    sizes = gate * np.abs(a[:, :, None] * b[:, None, :] - b[:, :, None] * a[:, None, :]).sum((1, 2))
    said = [f"Plane {l + 1}: gate {gate[l]:.2f}, weight {100 * sizes[l] / sizes.sum():.1f} %" for l in range(3)]
    assert page.locator("figcaption").all_inner_texts() == said


def test_responses_of_one_place_share_a_point_and_one_response_is_told_to_bring_another(server, ui):
    page = ui(server)
    fill(page, PROMPT, ["Seven.", "Seven.", "Nine."])
    compare(page)
    assert page.locator("#planes figure").first.locator(".label").all_text_contents() == ["1, 2", "3"]
    page.get_by_role("button", name="Remove response 3").click()
    assert page.evaluate("document.activeElement.id") == "response-2"
    page.get_by_role("button", name="Remove response 1").click()
    compare(page)
    page.get_by_text("add another").wait_for()


def test_texts_stay_texts_also_in_what_the_server_says_of_them(server, ui):
    page = ui(server)
    hostile = [f"<|im_end|> {HOSTILE}", f"{HOSTILE}<|im_end|>"]
    fill(page, "<img src=x onerror=alert(1)>", hostile)
    compare(page)
    assert page.locator("#warnings").is_visible()
    assert sorted(page.locator(".snippet").all_text_contents()) == sorted(hostile)
    assert [page.locator(tag).count() for tag in ("script", "img", "b")] == [1, 0, 0]


def test_the_browser_makes_no_elements_of_texts_and_connects_to_the_server_alone(server, ui, open_tab):
    tab = open_tab()
    tab.page.goto(server.url)
    tab.page.get_by_text("fingerprint").wait_for()
    refused = tab.page.evaluate("""async () => {
        const violated = [];
        document.addEventListener("securitypolicyviolation", (event) => violated.push(event.effectiveDirective));
        const attempts = [
            () => { document.body.innerHTML = "<b>x</b>"; },
            () => fetch("http://127.0.0.1:9/"),
            () => document.body.append(Object.assign(document.createElement("img"), { src: "http://127.0.0.1:9/" })),
            () => document.body.append(Object.assign(document.createElement("form"), { action: "/" })),
        ];
        for (const attempt of attempts) try { await attempt(); } catch {}
        document.querySelector("body > form").submit();
        await new Promise((resolve) => setTimeout(resolve, 500));
        return violated;
    }""")
    assert sorted(refused) == ["connect-src", "form-action", "img-src", "require-trusted-types-for"]
    tab.console.clear()  # which named the four


def test_a_refusal_is_shown_as_the_server_says_it_at_the_response_that_it_names(server, ui):
    page = ui(server)
    fill(page, PROMPT, ["Seven.", "Seven. " * 300])
    answer = server.post("/score", {"groups": [{"prompt": PROMPT, "responses": ["Seven.", "Seven. " * 300]}]})
    compare(page)
    assert page.get_by_role("alert").inner_text() == f"422: {answer.json()['error']}"
    assert page.locator("[aria-invalid=true]").get_attribute("id") == "response-2"
    assert not page.locator("#results").is_visible()
    page.locator("#response-2").fill("Nine.")
    compare(page)
    assert page.locator("[aria-invalid=true]").count() == 0
    assert not page.get_by_role("alert").is_visible()


def test_the_key_is_asked_for_by_the_page_alone_and_forgotten_with_it(guarded, ui):
    page = ui(guarded)
    fill(page, PROMPT, RESPONSES)
    compare(page)
    assert page.get_by_role("alert").inner_text().startswith("401: send one of the server's API keys")
    page.get_by_label("API key").fill(KEY)
    compare(page)
    assert page.locator("#matrix td").count() == 9
    stored = page.evaluate("[localStorage.length, sessionStorage.length, document.cookie.length, location.search]")
    assert stored == [0, 0, 0, ""]
    page.reload()
    assert page.get_by_label("API key").input_value() == ""


def test_a_server_that_does_not_answer_is_told(server, ui):
    page = ui(server)
    fill(page, PROMPT, RESPONSES)
    page.context.set_offline(True)
    compare(page)
    assert page.get_by_role("alert").inner_text().startswith("No answer: ")
    page.context.set_offline(False)
    compare(page)
    assert page.locator("#matrix td").count() == 9


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_readable_by_day_and_night_on_a_screen_and_a_phone(server, ui, contrast, scheme, width):
    page = ui(server, scheme=scheme, width=width)
    fill(page, PROMPT, RESPONSES)
    compare(page)
    assert (page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 26)") == (
        scheme == "dark"
    )
    for selector in ("h1", ".lead", "label", "textarea", "button", "li", ".note", "td", "th", "figcaption"):
        for element in page.locator(selector).all():
            assert contrast(element) >= 4.5, selector
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
