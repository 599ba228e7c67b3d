"""The page's files: what is served, under which headers, and what is not in them."""

from __future__ import annotations

import asyncio
import json
import re
from html.parser import HTMLParser
from importlib.resources import files

import pytest

from fourfold.server.page import PATHS
from tests.server.conftest import NAME

STATIC = files("fourfold.server") / "static"
TEXTS = {file.name: file.read_text(encoding="utf-8") for file in STATIC.iterdir()}
SCRIPTS = {name: text for name, text in TEXTS.items() if name.endswith(".js")}


def get(served, path, **headers):
    async def ask():
        async with served.http() as http:
            return await http.get(path, headers=headers)

    return asyncio.run(ask())


def policy(response) -> dict[str, str]:
    """The directives of a response's Content-Security-Policy."""
    parts = response.headers["content-security-policy"].split("; ")
    return {name: value for name, _, value in (part.partition(" ") for part in parts)}


def test_every_file_is_served_with_its_type_and_the_headers(serve):
    served = serve()
    types = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
    assert len(PATHS) == len(TEXTS) >= 10
    for path in sorted(PATHS):
        name = path.removeprefix("/static/").strip("/") or "index.html"
        response = get(served, path)
        assert response.status_code == 200 and response.text == TEXTS[name]
        assert response.headers["content-type"].startswith(types[name.rpartition(".")[2]])
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["x-frame-options"] == "DENY"
        assert response.headers["referrer-policy"] == "no-referrer"
        assert response.headers["cross-origin-opener-policy"] == "same-origin"
        assert response.headers["cross-origin-resource-policy"] == "same-origin"
        assert "camera=()" in response.headers["permissions-policy"]
        found = policy(response)
        assert found.pop("default-src") == "'none'"
        assert {found.pop(name) for name in ("base-uri", "form-action", "frame-ancestors")} == {"'none'"}
        assert found.pop("require-trusted-types-for") == "'script'" and found.pop("trusted-types") == "'none'"
        assert set(found) == {"script-src", "style-src", "img-src", "connect-src"}
        assert set(found.values()) == {"'self'"}


def test_a_browser_asks_again_only_whether_a_file_has_changed(serve):
    served = serve()
    first = get(served, "/static/main.js")
    assert first.headers["cache-control"] == "no-cache"
    again = get(served, "/static/main.js", **{"if-none-match": first.headers["etag"]})
    assert again.status_code == 304 and again.content == b""
    assert again.headers["content-security-policy"] == first.headers["content-security-policy"]
    assert get(served, "/", **{"if-none-match": first.headers["etag"]}).status_code == 200


@pytest.mark.parametrize(
    "path", ["/static/", "/static/app.py", "/static/..%2fpage.py", "/static/%2e%2e/page.py", "/index.html"]
)
def test_nothing_else_is_served(serve, path):
    response = get(serve(), path)
    assert response.status_code == 404 and response.json()["error"]["message"]


def test_the_page_needs_no_key_and_what_it_asks_for_does(serve):
    served = serve(keys=("a-first-key",), hosts=("server",))
    assert all(get(served, path).status_code == 200 for path in PATHS)
    for path in ("/metrics", "/v1/models"):
        assert get(served, path).status_code == 401
        assert get(served, path, authorization="Bearer a-first-key").status_code == 200
    assert get(served, "/", host="elsewhere.example").status_code == 403


def test_no_script_or_style_stands_in_the_page():
    class Page(HTMLParser):
        inside: str | None = None

        def handle_starttag(self, tag, attrs):
            own = dict(attrs)
            assert "style" not in own and not any(name.startswith("on") for name in own), (tag, attrs)
            assert tag != "style"
            for name in ("src", "href"):
                if not own.get(name, "#").startswith("#"):
                    assert own[name] in PATHS, own[name]
            self.inside = tag if tag == "script" else None
            if tag == "script":
                assert "src" in own

        def handle_data(self, data):
            assert self.inside is None or not data.strip()

        def handle_endtag(self, tag):
            self.inside = None

    Page().feed(TEXTS["index.html"])


def test_no_text_can_become_markup_or_script():
    """What a browser with Trusted Types refuses is not tried either: others have none."""
    unsafe = re.compile(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|setHTML"
        r"|createContextualFragment|srcdoc|DOMParser|javascript:"
    )
    for name, text in SCRIPTS.items():
        assert not unsafe.search(text), name


def test_the_page_asks_nobody_else():
    for name, text in TEXTS.items():
        addresses = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"')]*", text))
        assert addresses <= {"http://www.w3.org/2000/svg"}, name
        assert "@import" not in text and "url(" not in text, name


def test_modules_import_what_is_there():
    for name, text in SCRIPTS.items():
        for names, module in re.findall(r'import (.*?) from "\./([\w.]+)";', text, re.S):
            exported = set(
                re.findall(r"^export (?:async )?(?:function\*?|class|const) (\w+)", SCRIPTS[module], re.M)
            )
            if names.startswith("{"):
                assert set(re.findall(r"\w+", names)) <= exported, (name, module)


def test_a_chat_gives_the_tokens_that_the_live_view_needs(serve):
    served = serve("Grüße, cat")
    body = {"model": NAME, "messages": [{"role": "user", "content": "Hi"}], "return_token_ids": True}

    async def work():
        async with served.http() as http:
            whole = await http.post("/v1/chat/completions", json=body)
            plain = await http.post("/v1/chat/completions", json=body | {"return_token_ids": False})
            prompt = await http.post("/tokenize", json={"messages": body["messages"]})
            streamed = await http.post("/v1/chat/completions", json=body | {"stream": True})
            return whole.json(), plain.json(), prompt.json(), streamed.text

    whole, plain, prompt, streamed = asyncio.run(work())
    ids = served.model.tokenizer.encode("Grüße, cat", special=True)
    assert whole["choices"][0]["token_ids"] == ids
    assert whole["prompt_token_ids"] == prompt["tokens"]
    assert "prompt_token_ids" not in plain and "token_ids" not in plain["choices"][0]
    chunks = [
        json.loads(line.removeprefix("data: "))
        for line in streamed.splitlines()
        if line.startswith("data: {")
    ]
    assert [one for chunk in chunks for one in chunk["choices"][0].get("token_ids", [])] == ids
    assert chunks[0]["prompt_token_ids"] == prompt["tokens"]
    assert not any("prompt_token_ids" in chunk for chunk in chunks[1:])
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "Grüße, cat"
