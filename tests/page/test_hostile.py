"""A model may say anything, and so may what lies in the browser's storage: it is shown, and does nothing."""

from __future__ import annotations

import json

import pytest

from tests.page.conftest import answered, ask, until

pytestmark = pytest.mark.page

ATTACKS = [
    "<script>window.pwned = 1</script>",
    "<img src=x onerror='window.pwned = 1'>",
    "<svg/onload=window.pwned=1>",
    "<iframe srcdoc='<script>parent.pwned=1</script>'></iframe>",
    "<a href='javascript:window.pwned=1'>x</a>",
    "[click](javascript:window.pwned=1)",
    "[click](JaVaScRiPt:window.pwned=1)",
    "[click](java\tscript:window.pwned=1)",
    "[click]( javascript:window.pwned=1 )",
    "[click](<javascript:window.pwned=1>)",
    "[click](data:text/html;base64,PHNjcmlwdD5wYXJlbnQucHduZWQ9MTwvc2NyaXB0Pg==)",
    "[click](vbscript:x)",
    "[click](//evil.example/x)",
    "[click](/v1/models)",
    '[click](https://example.org/" onmouseover="window.pwned=1)',
    "![image](https://evil.example/pixel.png)",
    "![x](javascript:window.pwned=1)",
    "<javascript:window.pwned=1>",
    "https://example.org/\"onmouseover='window.pwned=1'",
    "```html\n<script>window.pwned = 1</script>\n```",
    '```"><img src=x onerror=window.pwned=1>\ncode\n```',
    "`<img src=x onerror=window.pwned=1>`",
    "| <img src=x onerror=pwned=1> | b |\n|---|---|\n| <script>window.pwned=1</script> | [c](data:x) |",
    "# <img src=x onerror=window.pwned=1>",
    "- <img src=x onerror=window.pwned=1>\n  > <script>window.pwned=1</script>",
    "**<img src=x onerror=window.pwned=1>**",
    "</article></main><script>window.pwned=1</script>",
    "&lt;script&gt;window.pwned=1&lt;/script&gt;",
    "{{constructor.constructor('window.pwned=1')()}}",
    "__proto__ constructor [a](__proto__)",
    "\u202e\u0000<b>\ufffe",
]

FOUND = """() => ({
  pwned: 'pwned' in window,
  elements: [...document.querySelectorAll('.message *')].map((one) => one.tagName.toLowerCase()),
  handlers: [...document.querySelectorAll('.message *')]
    .flatMap((one) => one.getAttributeNames()).filter((name) => name.startsWith('on') || name === 'style'),
  links: [...document.querySelectorAll('.message a')].map((one) => one.href),
  frames: window.frames.length,
})"""

HARMLESS = {
    *(
        "details",
        "summary",
        "div",
        "footer",
        "p",
        "button",
        "span",
        "code",
        "pre",
        "figure",
        "figcaption",
        "a",
    ),
    *(
        "ul",
        "ol",
        "li",
        "blockquote",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "strong",
        "em",
        "del",
        "br",
    ),
    *("h3", "h4", "h5", "h6", "hr"),
}


def check(page) -> None:
    page.wait_for_timeout(100)
    found = page.evaluate(FOUND)
    assert not found["pwned"] and not found["handlers"] and not found["frames"]
    assert set(found["elements"]) <= HARMLESS
    assert all(link.startswith(("https://", "http://", "mailto:")) for link in found["links"])


def test_whatever_the_model_says_it_is_only_text(serve, visit):
    served = serve("\n\n".join(ATTACKS))
    page = visit(served.url)
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    ask(page, "<img src=x onerror=window.pwned=1> **not markdown**")
    answered(page)
    check(page)
    assert page.inner_text(".message.user > .body") == "<img src=x onerror=window.pwned=1> **not markdown**"
    shown = page.text_content(".message.assistant > .body")
    for seen in (
        "<script>window.pwned = 1</script>",
        "<img src=x onerror='window.pwned = 1'>",
        "&lt;script&gt;",
    ):
        assert seen in shown
    page.hover(".message.assistant > .body a >> nth=0")
    check(page)
    assert all(url.startswith(served.url) for url in requests)


@pytest.mark.parametrize("attack", ATTACKS[:6], ids=str)
def test_cut_at_every_token_it_is_still_only_text(serve, visit, attack):
    """What is half there is shown, too, and built anew with every token."""
    page = visit(serve(f"x {attack} y", pause=0.01).url)
    ask(page, attack)
    answered(page)
    check(page)


def test_thoughts_titles_and_errors_are_only_text(serve, visit):
    attack = "<img src=x onerror=window.pwned=1>"
    served = serve(f"{attack}</think>{attack}")
    page = visit(served.url, expected="status of (422|404)")
    page.click("#toggle-settings")
    page.select_option("#effort", "low")
    ask(page, attack)
    answered(page)
    check(page)
    assert page.inner_text("#title") == attack and attack in page.inner_text("#conversations")
    page.evaluate("document.querySelector('.thought').open = true")
    assert page.inner_text(".thought .body") == attack

    def answer(route):
        document = {"error": {"message": attack}}
        route.fulfill(status=422, content_type="application/json", body=json.dumps(document))

    page.route("**/v1/chat/completions", answer)
    ask(page, "Again")
    answered(page, 2)
    assert page.inner_text(".error") == attack
    check(page)


def test_what_lies_in_the_storage_is_only_data(serve, visit):
    served = serve("Hello.")
    page = visit(served.url)
    attack = "<img src=x onerror=window.pwned=1>"
    stored = {
        "fourfold.conversation.a": {
            "id": "a",
            "title": attack,
            "changed": 1,
            "settings": {"system": attack},
            "messages": [
                {"role": "user", "content": attack},
                {"role": "assistant", "content": attack, "error": attack},
            ],
        },
        "fourfold.conversation.b": {"id": "c"},
        "fourfold.current": "a",
        "fourfold.theme": attack,
        "fourfold.panel": attack,
    }
    for name, value in stored.items():
        text = value if isinstance(value, str) else json.dumps(value)
        page.evaluate("([name, text]) => localStorage.setItem(name, text)", [name, text])
    page.evaluate("localStorage.setItem('fourfold.conversation.d', '{no json')")
    page.reload()
    until(page, "document.querySelectorAll('.message').length === 2")
    check(page)
    assert page.locator("#conversations li").count() == 1


def test_the_browser_refuses_markup_script_and_strangers(serve, visit):
    """The policy holds, should our own code ever slip."""
    page = visit(serve().url, expected="Content Security Policy|Trusted|violates|Failed to fetch")
    tried = """async () => {
      const refused = [];
      const script = document.createElement('script');
      try { document.body.insertAdjacentHTML('beforeend', '<b>x</b>'); } catch { refused.push('markup'); }
      try { script.textContent = 'window.pwned = 1'; document.body.append(script); } catch {}
      if (!('pwned' in window)) refused.push('script');
      try { await fetch('https://example.org/'); } catch { refused.push('a stranger'); }
      return refused;
    }"""
    assert page.evaluate(tried) == ["markup", "script", "a stranger"]


MARKDOWN = {
    "a *b* c": "<p>a <em>b</em> c</p>",
    "2 * 3 * 4": "<p>2 * 3 * 4</p>",
    "snake_case_name and _this_": "<p>snake_case_name and <em>this</em></p>",
    "***both***": "<p><strong><em>both</em></strong></p>",
    "*a **b** c*": "<p><em>a <strong>b</strong> c</em></p>",
    "**a *b* c**": "<p><strong>a <em>b</em> c</strong></p>",
    "~~gone~~": "<p><del>gone</del></p>",
    "`` a`b ``": "<p><code>a`b</code></p>",
    "`*a*`": "<p><code>*a*</code></p>",
    "\\*a\\*": "<p>*a*</p>",
    "a\nb\n\nc": "<p>a<br>b</p><p>c</p>",
    "# a #": "<h3>a</h3>",
    "#a": "<p>#a</p>",
    "---": "<hr>",
    "> a\n> > b": "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote>",
    "- a\n- b\n\n  c": "<ul><li>a</li><li>b<p>c</p></li></ul>",
    "3. a\n4. b": '<ol start="3"><li>a</li><li>b</li></ol>',
    "* a\n  - b\n    - c\n* d": "<ul><li>a<ul><li>b<ul><li>c</li></ul></li></ul></li><li>d</li></ul>",
    "text:\n- a": "<p>text:</p><ul><li>a</li></ul>",
    "[a [b]](https://x.org/(y))": '<p><a href="https://x.org/(y)">a [b]</a></p>',
    "see https://x.org/a, or": '<p>see <a href="https://x.org/a">https://x.org/a</a>, or</p>',
    "[a](mailto:a@x.org)": '<p><a href="mailto:a@x.org">a</a></p>',
    "![a](https://x.org/a.png)": '<p><a href="https://x.org/a.png">a</a></p>',
    "a | b\n--|--\n1 | `2`": "<table><thead><tr><th>a</th><th>b</th></tr></thead>"
    "<tbody><tr><td>1</td><td><code>2</code></td></tr></tbody></table>",
}

SHOW = """async (texts) => {
  const { Markdown } = await import('/static/markdown.js');
  const plain = (element) => {
    for (const one of element.querySelectorAll('*')) {
      for (const name of one.getAttributeNames()) {
        if (name !== 'href' && name !== 'start') one.removeAttribute(name);
      }
      if (one.tagName === 'DIV') one.replaceWith(...one.childNodes);
    }
    return element.innerHTML;
  };
  return texts.map((text) => {
    const whole = document.createElement('div');
    new Markdown(whole).show(text);
    const pieces = document.createElement('div');
    const growing = new Markdown(pieces);
    for (let end = 1; end <= text.length; end += 1) growing.show(text.slice(0, end));
    return { same: whole.innerHTML === pieces.innerHTML, html: plain(whole) };
  });
}"""


def test_markdown(serve, visit):
    page = visit(serve().url)
    shown = page.evaluate(SHOW, [*MARKDOWN, "\n\n".join(MARKDOWN), *ATTACKS])
    assert all(one["same"] for one in shown), "in pieces it is another text"
    assert {text: one["html"] for text, one in zip(MARKDOWN, shown, strict=False)} == MARKDOWN


def test_no_text_keeps_the_page_busy(serve, visit):
    page = visit(serve().url)
    long = [piece * (40_000 // len(piece)) for piece in (
        "*", "**a", "_a ", "`", "``a`", "[", "[a](", "![a", "[a](((", "> ", ">", "- ", "1. ", "  - a\n",
        "# ", "~", "~~a", "\\", "https://x.org/", "h", "a\n", " ", "-", "|-", "*a **b ", "((((", "<", "```\n",
        "# a #", "[[a]", "| a ",
    )]  # fmt: skip
    measure = """async (texts) => {
      const { Markdown } = await import('/static/markdown.js');
      return texts.map((text) => {
        const began = performance.now();
        new Markdown(document.createElement('div')).show(text);
        return Math.round(performance.now() - began);
      });
    }"""
    times = page.evaluate(measure, long)
    slow = {text[:12]: time for text, time in zip(long, times, strict=True) if time > 1500}
    assert not slow
