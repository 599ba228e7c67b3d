"""The page before a real server process: one that dies and comes back, and what the live view says of it."""

from __future__ import annotations

import json

import pytest

from tests.page.conftest import answered, ask, begun, until

pytestmark = pytest.mark.page

LOST = "ERR_|Failed to load resource"


def test_a_server_that_dies_and_comes_back(process, visit):
    page = visit(process.url, expected=LOST)
    until(page, "document.getElementById('model').innerText !== ''")
    page.click("#toggle-settings")
    page.fill("[name=max_tokens]", "450")

    def without_end(route):
        body = route.request.post_data_json | {"ignore_eos": True}
        route.continue_(post_data=json.dumps(body))

    page.route("**/v1/chat/completions", without_end)
    ask(page, "Tell me something")
    begun(page)
    process.kill()
    page.wait_for_selector(".message.assistant .error")
    assert "broke off" in page.inner_text(".message.assistant .error")
    page.wait_for_selector("#notice:visible")
    assert page.get_attribute("#server", "data-state") == "lost"
    said = page.inner_text(".message.assistant > .body")
    assert len(said) > 20
    ask(page, "Are you there?")
    answered(page, 2)
    assert "does not answer" in page.locator(".message.assistant .error").last.inner_text()
    process.start()
    page.wait_for_selector("#notice", state="hidden", timeout=60_000)
    assert page.get_attribute("#server", "data-state") == "there"
    page.fill("[name=max_tokens]", "20")
    page.click("text=Try again")
    until(page, "document.querySelectorAll('.message.assistant .error').length === 1")
    answered(page, 2)
    assert page.locator(".message.assistant > .body").last.inner_text()
    assert page.locator(".message.assistant > .body").first.inner_text() == said


def test_the_live_view(process, visit):
    page = visit(process.url)
    page.click("#toggle-settings")
    for name, value in {"max_tokens": "40", "temperature": "0"}.items():
        page.fill(f"[name={name}]", value)
    page.click("#toggle-live")
    ask(page, "Once upon a time there was a cat. " * 3)
    answered(page)
    until(page, "document.querySelector('.gauge .note').innerText.startsWith('40 tokens')")
    until(page, "document.getElementById('live').innerText.includes('MiB')")
    names = page.locator(".gauge h2").all_inner_texts()
    gauges = dict(zip(names, page.locator(".gauge .note").all_inner_texts(), strict=True))
    assert list(gauges) == ["Tokens a second", "Requests", "Prefix hits", "KV cache", "Experts"]
    assert gauges["Experts"] == "Memory holds them all." and "MiB" in gauges["KV cache"]
    page.click("text=Regenerate")
    page.wait_for_timeout(100)
    answered(page)
    until(page, "!document.querySelectorAll('.gauge .note')[2].innerText.startsWith('0 of')")

    with page.expect_response("**/fourfold/inspect") as looked:
        page.click("text=Look inside")
    found = looked.value.json()
    tokens = page.locator(".tokens button")
    assert tokens.count() == 40 and tokens.last.get_attribute("aria-pressed") == "true"
    assert found["position"] == len(found["token_strs"]) - 1
    maps = page.locator(".map")
    chosen = sum(len(layer["experts"]) for layer in found["layers"])
    assert maps.first.locator(".chosen").count() == chosen == 4 * 2
    spans = [layer["spans"] for layer in found["layers"] if layer["spans"] is not None]
    assert spans and maps.last.locator(".chosen").count() == sum(map(len, spans))
    picked = "".join(page.locator(".context .picked").all_text_contents())
    own = {at for some in spans for start, end in some for at in range(start, end)}
    assert picked == "".join(found["token_strs"][at] for at in sorted(own))
    tokens.last.focus()
    page.keyboard.press("ArrowLeft")
    until(page, "document.querySelectorAll('.tokens button')[38].getAttribute('aria-pressed') === 'true'")
    assert page.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true"
    page.click(".tokens button >> nth=0")
    until(page, "document.querySelector('.tokens button').getAttribute('aria-pressed') === 'true'")
    page.click("text=As a table")
    assert page.locator("#inside tbody tr").count() == len(found["layers"])


def test_an_answer_from_before_can_be_looked_into(process, visit):
    page = visit(process.url)
    page.click("#toggle-settings")
    page.fill("#system", "Be a cat.")
    page.fill("[name=max_tokens]", "12")
    ask(page, "Hello")
    answered(page)
    page.reload()
    page.fill("#system", "Be a dog.")  # what was asked then counts
    with page.expect_response("**/fourfold/inspect") as looked:
        page.click("text=Look inside")
    assert "Be a cat." in "".join(looked.value.json()["token_strs"])
    page.wait_for_selector(".tokens button")
