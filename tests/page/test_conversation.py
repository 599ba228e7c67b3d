"""What one does on the page: ask, stop, ask again, edit, leave and come back."""

from __future__ import annotations

import json

import pytest

from tests.page.conftest import answered, ask, begun, until

pytestmark = pytest.mark.page

MARKDOWN = """# Cats

A *cat* is **not** a dog, see [here](https://example.org/cats).

- one
- two
  1. inner

| a | b |
|---|--:|
| 1 | 2 |

```python
def cat():
    return "<b>"
```"""


def texts(page, role: str) -> list[str]:
    return page.locator(f".message.{role} > .body").all_inner_texts()


def test_a_question_and_its_answer(serve, visit):
    page = visit(serve(MARKDOWN).url)
    page.wait_for_selector("#server[data-state=there]")
    assert page.inner_text("#model") == "stub"
    page.fill("#input", "What is")
    page.press("#input", "Shift+Enter")
    page.type("#input", "a cat?")
    page.press("#input", "Enter")
    answered(page)
    assert texts(page, "user") == ["What is\na cat?"]
    body = page.locator(".message.assistant > .body")
    assert body.locator("h3").inner_text() == "Cats"
    assert body.locator("em").inner_text() == "cat" and body.locator("strong").inner_text() == "not"
    link = body.locator("a")
    assert link.get_attribute("href") == "https://example.org/cats"
    assert "noopener" in link.get_attribute("rel") and link.get_attribute("target") == "_blank"
    assert body.locator("ul > li").all_inner_texts() == ["one", "two\ninner"]
    assert body.locator("tbody td.right").inner_text() == "2"
    assert body.locator("pre code").inner_text() == 'def cat():\n    return "<b>"'
    assert body.locator("figcaption").inner_text().startswith("python")
    assert "tokens" in page.inner_text(".message.assistant .figures")
    assert page.inner_text("#title") == "What is a cat?" and page.title().startswith("What is a cat?")
    assert page.evaluate("document.activeElement.id") == "input"
    assert page.inner_text("#announcer").startswith("Answer: # Cats")


def test_it_is_shown_while_it_is_written(serve, visit):
    page = visit(serve("one two three four five six seven eight", pause=0.1).url)
    ask(page, "Count")
    page.wait_for_selector(".message.assistant[aria-busy=true]")
    begun(page, 2)
    early = texts(page, "assistant")[0]
    answered(page)
    assert early != texts(page, "assistant")[0] == "one two three four five six seven eight"


def test_thinking_is_folded_when_the_answer_begins(serve, visit):
    page = visit(serve("Cats. I know **them**.</think>A cat.", pause=0.05).url)
    page.click("#toggle-settings")
    page.select_option("#effort", "low")
    page.click("#close-panel")
    ask(page, "What is it?")
    page.wait_for_selector(".thought[open] summary:text('Thinking…')")
    answered(page)
    assert texts(page, "assistant") == ["A cat."]
    assert page.get_attribute(".thought", "open") is None
    assert page.inner_text(".thought summary").startswith("Thought for ")
    page.click(".thought summary")
    assert page.inner_text(".thought .body strong") == "them"


@pytest.mark.parametrize("how", ["Escape", "button"])
def test_stop(serve, visit, how):
    served = serve(None, pause=0.03)
    page = visit(served.url)
    ask(page, "Go on for ever")
    begun(page)
    assert page.get_attribute("#send", "aria-label") == "Stop"
    if how == "button":
        page.click("#send")
    else:
        page.keyboard.press("Escape")
    answered(page)
    said = texts(page, "assistant")[0]
    assert len(said) > 20 and "Stopped." in page.inner_text(".message.assistant footer")
    assert page.get_attribute("#send", "aria-label") == "Send"
    for _ in range(100):
        if served.idle():
            break
        page.wait_for_timeout(20)
    assert served.idle()
    served.model.say("Yes.")
    ask(page, "Still there?")
    answered(page, 2)
    assert texts(page, "assistant")[1] == "Yes."
    assert texts(page, "assistant")[0] == said


def test_regenerate_and_edit(serve, visit):
    served = serve("First.")
    page = visit(served.url)
    ask(page, "One")
    answered(page)
    served.model.say("Second.")
    page.click("text=Regenerate")
    page.wait_for_selector("text=Second.")
    answered(page)
    assert texts(page, "user") == ["One"] and texts(page, "assistant") == ["Second."]
    served.model.say("Third.")
    page.press("#input", "ArrowUp")
    assert page.input_value(".edit textarea") == "One"
    page.fill(".edit textarea", "Two")
    page.press(".edit textarea", "Enter")
    page.wait_for_selector("text=Third.")
    assert texts(page, "user") == ["Two"] and texts(page, "assistant") == ["Third."]
    page.hover(".message.user")
    page.click("text=Edit")
    page.press(".edit textarea", "Escape")
    assert texts(page, "user") == ["Two"]
    with page.expect_request("**/v1/chat/completions") as sent:
        ask(page, "And then?")
    assert [one["content"] for one in sent.value.post_data_json["messages"]] == ["Two", "Third.", "And then?"]
    answered(page, 2)


def test_conversations_are_kept_listed_and_deleted(serve, visit):
    served = serve("It is kept.")
    page = visit(served.url)
    ask(page, "The first one")
    answered(page)
    page.reload()
    assert texts(page, "user") == ["The first one"] and texts(page, "assistant") == ["It is kept."]
    page.click("#new")
    assert texts(page, "user") == []
    ask(page, "The second one")
    answered(page)
    names = page.locator("#conversations .name")
    assert names.all_inner_texts() == ["The second one", "The first one"]
    names.nth(1).click()
    assert texts(page, "user") == ["The first one"]
    page.get_by_label("Delete The first one").click()
    assert names.all_inner_texts() == ["The second one"] and texts(page, "user") == []
    page.click("#toast button")
    assert texts(page, "user") == ["The first one"] and len(names.all()) == 2
    page.get_by_label("Delete The second one").click()
    page.reload()
    assert names.all_inner_texts() == ["The first one"] and texts(page, "user") == ["The first one"]


def test_what_was_written_when_the_page_is_left_is_kept(serve, visit):
    served = serve(None, pause=0.03)
    page = visit(served.url)
    ask(page, "Go on for ever")
    begun(page)
    page.reload()
    assert len(texts(page, "assistant")[0]) > 20 and "Stopped." in page.inner_text(
        ".message.assistant footer"
    )
    assert page.get_attribute("#send", "aria-label") == "Send"


def test_another_conversation_goes_on_meanwhile(serve, visit):
    served = serve("slow and steady wins the race, they say", pause=0.06)
    page = visit(served.url)
    ask(page, "The slow one")
    page.wait_for_selector(".message.assistant[aria-busy=true]")
    page.click("#new")
    assert page.get_attribute("#send", "aria-label") == "Send"
    page.click("#conversations .name")
    answered(page)
    assert texts(page, "assistant") == ["slow and steady wins the race, they say"]


def test_settings_reach_the_server(serve, visit):
    page = visit(serve("Fine.").url)
    page.click("#toggle-settings")
    page.fill("#system", "You are a cat.")
    page.select_option("#effort", "none")
    for name, value in {"temperature": "0.5", "top_p": "0.9", "max_tokens": "20", "seed": "7"}.items():
        page.fill(f"[name={name}]", value)
    with page.expect_request("**/v1/chat/completions") as sent:
        ask(page, "Who are you?")
    body = sent.value.post_data_json
    assert body["messages"][0] == {"role": "system", "content": "You are a cat."}
    assert {
        name: body[name] for name in ("temperature", "top_p", "max_tokens", "seed", "reasoning_effort")
    } == {
        "temperature": 0.5,
        "top_p": 0.9,
        "max_tokens": 20,
        "seed": 7,
        "reasoning_effort": "none",
    }
    answered(page)
    page.fill("[name=temperature]", "3")  # not allowed: not sent
    page.fill("[name=seed]", "")
    with page.expect_request("**/v1/chat/completions") as sent:
        ask(page, "Again")
    assert "temperature" not in sent.value.post_data_json and "seed" not in sent.value.post_data_json
    answered(page, 2)
    page.reload()
    assert page.input_value("#system") == "You are a cat." and page.input_value("[name=top_p]") == "0.9"


def test_one_of_several_models_can_be_chosen(serve, visit):
    page = visit(serve("Fine.", aliases=("another",)).url)
    page.click("#toggle-settings")
    page.select_option("#model-choice", "another")
    assert page.inner_text("#model") == "another"
    with page.expect_request("**/v1/chat/completions") as sent:
        ask(page, "Who are you?")
    assert sent.value.post_data_json["model"] == "another"
    answered(page)
    with page.expect_request("**/fourfold/inspect") as sent:
        page.click("text=Look inside")
    assert sent.value.post_data_json["model"] == "another"
    page.reload()
    until(page, "document.getElementById('model').innerText === 'another'")


def test_an_answer_that_is_cut_says_so(serve, visit):
    page = visit(serve("one two three four five six").url)
    page.click("#toggle-settings")
    page.fill("[name=max_tokens]", "3")
    ask(page, "Count")
    answered(page)
    assert "longest answer" in page.inner_text(".message.assistant footer")


def test_a_refusal_is_shown_and_can_be_tried_again(serve, visit):
    served = serve("Fine.", waiting=0)
    page = visit(served.url, expected="status of (503|400)")
    served.server.draining = True
    ask(page, "Hello")
    answered(page)
    assert "shutting down" in page.inner_text(".message.assistant .error")
    served.server.draining = False
    page.click("text=Try again")
    page.wait_for_selector("text=Fine.")
    assert page.locator(".error").count() == 0


def test_a_key_is_asked_for_once_and_never_kept_for_long(serve, visit):
    served = serve("Come in.", keys=("a-secret-key",))
    page = visit(served.url, expected="status of 401")
    page.wait_for_selector("#ask-key[open]")
    assert "API key" in page.inner_text("#ask-key-why")
    page.fill("#asked-key", "a-wrong-key")
    page.press("#asked-key", "Enter")
    page.wait_for_selector("#ask-key-why:text('wrong')")
    page.click("#ask-key-cancel")
    ask(page, "Let me in")
    page.wait_for_selector("#ask-key[open]")
    page.fill("#asked-key", "a-secret-key")
    page.press("#asked-key", "Enter")
    page.wait_for_selector("text=Come in.")
    answered(page)
    assert texts(page, "user") == ["Let me in"] and texts(page, "assistant") == ["Come in."]
    page.reload()
    until(page, "document.getElementById('model').innerText === 'stub'")
    assert "a-secret-key" not in json.dumps(page.evaluate("({...localStorage})"))
