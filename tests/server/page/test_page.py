"""The chat page in a real browser: streams, switches, stops, and shows text as text."""

from __future__ import annotations

import re
from typing import Any

import pytest

from enginewright.runtime import LLM, SamplingParams

IDLE = "!document.getElementById('send').disabled && document.querySelector('article.assistant')"


def ask(browser: Any, text: str) -> None:
    browser.fill("prompt", text)
    browser.click("send")


def opened(browser: Any, server: Any, **fields: str) -> Any:
    browser.open(server.url + "/")
    browser.wait("document.getElementById('model').value && document.querySelector('td')")
    for name, value in fields.items():
        browser.fill(name, value)
    return browser


def test_an_answer_is_that_of_the_offline_api(browser: Any, server: Any, offline: LLM) -> None:
    opened(browser, server, temperature="0", max_tokens="300", system="Be brief.")
    ask(browser, "Call me Ishmael.")
    browser.wait(IDLE)

    turns = [{"role": "system", "content": "Be brief."}]
    turns.append({"role": "user", "content": "Call me Ishmael."})
    params = SamplingParams(temperature=0, max_tokens=300)
    (expected,) = offline.chat(turns, params, use_tqdm=False)
    count = len(expected.outputs[0].token_ids)
    assert count > 100, "so many do not come in one piece"
    assert browser.texts("article.user .text") == ["Call me Ishmael."]
    assert browser.texts("article.assistant .text") == [expected.outputs[0].text]
    (speed,) = browser.texts("#speed")
    assert re.fullmatch(rf"[\d.]+ tokens/s, {count} tokens, first after [\d.]+ s", speed), speed
    assert browser.logged == []


def test_it_streams_and_stops(browser: Any, server: Any) -> None:
    opened(browser, server, temperature="0", max_tokens="500")
    ask(browser, "On and on")
    shown = "document.querySelector('article.assistant .text').textContent.length"
    browser.wait(f"document.querySelector('article.assistant') && {shown} > 0")
    if not browser.evaluate("document.getElementById('stop').disabled"):
        browser.click("stop")
    browser.wait(IDLE)
    (model,) = server.models
    assert model.unfinished == 0


def test_effective_parameters_say_what_set_them(browser: Any, server: Any) -> None:
    opened(browser, server, temperature="0.25", model="alias")
    browser.wait("document.querySelector('aside table').textContent.includes('0.25')")
    rows = {row.split("\n")[0]: row for row in browser.texts("aside tr")}
    (row,) = (text for name, text in rows.items() if name.startswith("temperature"))
    assert row == "temperature0.25this page"
    assert any(text.startswith("top_p1") for text in rows.values())


def test_an_error_is_shown(browser: Any, server: Any) -> None:
    opened(browser, server, temperature="7")
    ask(browser, "Hi")
    browser.wait(IDLE)
    (told,) = browser.texts("article.error")
    assert "temperature" in told


def test_what_a_model_writes_is_text(browser: Any, server: Any) -> None:
    opened(browser, server)
    evil = "<img src=x onerror=\"document.title='bad'\"><script>document.title='bad'</script>"
    browser.evaluate(f"say('assistant', {evil!r})")
    ask(browser, evil)
    browser.wait(IDLE)
    assert browser.evaluate("document.title") == "Enginewright"
    assert browser.evaluate("document.querySelectorAll('main img, main script').length") == 0
    assert evil in browser.texts("article.user .text")


def test_nothing_foreign_is_run_or_asked(browser: Any, server: Any) -> None:
    opened(browser, server)
    browser.evaluate(
        "(s => { s.textContent = 'document.title = \"bad\"'; document.body.append(s); })"
        "(document.createElement('script'))"
    )
    blocked = "fetch('http://127.0.0.2:1/').then(() => 'went', error => 'blocked')"
    assert browser.evaluate(blocked) == "blocked"
    assert browser.evaluate("document.title") == "Enginewright"
    assert any("Content Security Policy" in entry for entry in browser.logged)


def test_a_key_is_asked_for(browser: Any, serve: Any) -> None:
    with serve(api_key=["secret"]) as running:
        browser.open(running.url + "/")
        browser.wait("document.getElementById('speed').textContent === 'Unauthorized'")
        browser.fill("key", "secret")
        browser.wait("document.getElementById('model').value")


@pytest.mark.parametrize("field", ["content-security-policy"])
def test_the_page_is_one_file(server: Any, field: str) -> None:
    import urllib.request

    with urllib.request.urlopen(server.url + "/") as answer:
        html = answer.read().decode()
        assert "script-src 'sha256-" in answer.headers[field]
    assert not re.search(r'(?:src|href)="(?!data:)', html)
    assert "innerHTML" not in html
