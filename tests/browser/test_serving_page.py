"""The page of `lmcore serve` on the real server, in a browser: a text comes, is looked into, changed and stopped."""

import json
import re
import shutil
import sys
import time
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from chromium import PATIENCE, Browser, serve
from imports import ROOT
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from tiny import TINY_MODEL, sharpen, tokenizer_params

from lmcore.model.gpt import GPT
from lmcore.model.save_load import save_model
from lmcore.train_tokenizer.train_tokenizer import train_tokenizer

PAGE = ROOT / "lmcore" / "serve" / "page.html"
KEY = "open-sesame"
TOKENS = "[...document.querySelectorAll('#text .token')]"
TEXT = "document.getElementById('text').textContent"
IDLE = "document.getElementById('generate').textContent === 'Generate'"

pytestmark = pytest.mark.xdist_group("browser")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of bytes that says anything, much of it half characters."""
    folder = tmp_path_factory.mktemp("serving")
    shutil.copy(ROOT / "params.yaml", folder)
    (folder / "dvc.yaml").touch()
    tokenizer = train_tokenizer(tokenizer_params("byte"), [])
    model = sharpen(GPT(TINY_MODEL, tokenizer.vocab_size, 3, end_of_text=tokenizer.end_of_text))
    save_model(folder / "model", model, lineage={})
    tokenizer.save(folder / "model")
    return folder


@pytest.fixture(scope="module")
def address(project: Path) -> Iterator[str]:
    with serve(project, lambda port: command(port), "/health") as found:
        yield found


def command(port: int, *more: str) -> list[str]:
    return [sys.executable, "-m", "lmcore", "serve", "model", "--port", str(port), "--batch", "2", *more]


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Browser]:
    """Open, and at the end without a complaint on the console or a request that leaves the server."""
    browser.open(address)
    browser.wait("document.getElementById('model').textContent")
    yield browser
    browser.wait(IDLE)
    assert browser.console() == []
    assert {url for url in browser.requests() if not url.startswith(f"{address}/")} == set()


def fill(page: Browser, prompt: str, **settings: object) -> None:
    """Type the prompt; put the settings where a hand would, with the events that follow."""
    page.driver.find_element(By.ID, "prompt").send_keys(prompt)
    for name, value in settings.items():
        page.run(
            "const input = document.querySelector(`[name=${arguments[0]}]`); input.value = arguments[1];"
            "input.dispatchEvent(new Event('input', {bubbles: true}))",
            *(name, str(value)),
        )


def generate(page: Browser, prompt: str, **settings: object) -> str:
    fill(page, prompt, **settings)
    page.driver.find_element(By.ID, "generate").click()
    page.wait(f"{IDLE} && {TOKENS}.length")
    return str(page.run(f"return {TEXT}"))


def ask_all(address: str, **body: Any) -> list[dict[str, Any]]:
    """What the server answers without a page."""
    content = json.dumps(body).encode()
    request = urllib.request.Request(f"{address}/v1/completions", content, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        choices: list[dict[str, Any]] = json.load(answer)["choices"]
        return choices


def read_metric(address: str, name: str) -> float:
    with urllib.request.urlopen(f"{address}/metrics", timeout=10) as answer:
        found = re.search(rf"^{name} ([\d.]+)$", answer.read().decode(), re.M)
    assert found
    return float(found[1])


def test_only_the_files_own_script_and_style_run() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for kind in ("script", "style"):
        (content,) = re.findall(rf"<{kind}>(.*?)</{kind}>", text, re.S)
        digest = b64encode(sha256(content.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in text, f"in the head's policy write {kind}-src 'sha256-{digest}'"
    for unsafe in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", " on"):
        assert not re.search(rf"{re.escape(unsafe)}\w*=" if unsafe == " on" else re.escape(unsafe), text), unsafe


@pytest.mark.slow
def test_a_text_comes_token_by_token_with_its_probabilities(page: Browser, address: str) -> None:
    slider = page.driver.find_element(By.NAME, "temperature")
    slider.send_keys(Keys.ARROW_RIGHT * 2)
    assert page.run("return arguments[0].labels[0].querySelector('output').textContent", slider) == "0.9"
    page.run(
        "window.seen = []; new MutationObserver(() => window.seen.push(tokens.length))"
        ".observe(document.getElementById('text'), {childList: true})"
    )
    shown = generate(page, "the cat", max_tokens=40, seed=5, top_k=50)
    # Half characters and all, it is what the server says of the same request.
    settings = {"temperature": 0.9, "top_k": 50, "seed": 5, "max_tokens": 40}
    (answer,) = ask_all(address, prompt="the cat", **settings)
    assert shown == "the cat" + answer["text"]
    assert page.run("return tokens.length") == 40
    assert len(page.run("return [...new Set(window.seen)]")) > 3
    told = page.run("return document.getElementById('status').textContent")
    assert re.fullmatch(r"40 tokens, \d+ tokens/s; at its full length", told)
    # The less likely, the stronger its ground.
    pairs = page.run(f"return {TOKENS}.map((span, at) => [tokens[at].probability, span.style.backgroundColor])")
    strengths = [float(re.findall(r"[\d.]+", ground)[-1]) for _, ground in sorted(pairs)]
    assert all(0 <= probability <= 1 for probability, _ in pairs)
    assert strengths == sorted(strengths, reverse=True)
    assert strengths[0] > strengths[-1]


@pytest.mark.slow
def test_a_seed_says_which_text(page: Browser) -> None:
    first = generate(page, "so", max_tokens=12, seed=7, temperature=1.5)
    assert generate(page, "") == first
    assert generate(page, "", seed=8) != first


@pytest.mark.slow
def test_an_alternative_is_gone_on_with(page: Browser) -> None:
    generate(page, "dog", max_tokens=10, seed=1, temperature=0)
    before = page.run("return tokens.map(({name}) => name)")
    page.run(f"{TOKENS}[0].focus()")
    page.driver.switch_to.active_element.send_keys(Keys.ARROW_RIGHT * 3)
    rows = page.driver.find_elements(By.CSS_SELECTOR, "#alternatives .choice")
    assert len(rows) == 5
    chances = page.run("return [...document.querySelectorAll('.choice i')].map(({style}) => parseFloat(style.width))")
    assert chances == sorted(chances, reverse=True)
    # At temperature 0 the likeliest was taken.
    assert "taken" in (rows[0].get_attribute("class") or "")
    names = page.run("return tokens[3].choices.map(([name]) => name)")
    at = next(at for at, name in enumerate(names) if at and ":" not in name)
    rows[at].click()
    page.wait(f"{IDLE} && tokens.length === 14")
    after = page.run("return tokens.map(({name}) => name)")
    assert after[:4] == [*before[:3], names[at]]


@pytest.mark.slow
def test_the_end_of_a_text_is_a_sign_and_no_choice(page: Browser, address: str) -> None:
    """The server tells it as a token that is no part of the text: here it comes by chance, one text in a hundred."""
    asked = {"prompt": "", "n": 64, "max_tokens": 20, "logprobs": 5, "temperature": 2, "top_k": 200}
    choices = (choice for seed in range(40) for choice in ask_all(address, seed=seed, **asked))
    ended = next(choice for choice in choices if choice["finish_reason"] == "stop")
    page.run("add(arguments[0], 0)", ended)
    assert page.run(f"return {TEXT}") == ended["text"] + "∎"
    page.run(f"{TOKENS}.at(-1).click()")
    (end,) = page.driver.find_elements(By.CSS_SELECTOR, ".choice.taken")
    assert "end" in (end.accessible_name or "")
    assert not end.is_enabled()


@pytest.mark.slow
def test_stop_frees_the_slot(page: Browser, address: str) -> None:
    most = 4096  # the server's limit, beyond the slider's: a busy browser may see the first token seconds late
    (endless,) = ask_all(address, prompt="run", max_tokens=most, temperature=0)
    assert endless["finish_reason"] == "length", "of itself it would end at any token"
    generated = read_metric(address, "lmcore_generated_tokens_total")
    page.run("document.querySelector('[name=max_tokens]').max = arguments[0]", most)
    fill(page, "run", max_tokens=most, temperature=0)
    page.run("""new MutationObserver((_, watching) => {
        if (tokens.length < 5) return;
        watching.disconnect();
        document.getElementById('generate').click();
    }).observe(document.getElementById('text'), {childList: true})""")
    page.driver.find_element(By.ID, "generate").click()
    page.wait(f"{IDLE} && tokens.length")
    assert page.run("return document.getElementById('status').textContent").endswith("; stopped")
    deadline = time.monotonic() + PATIENCE
    while read_metric(address, "lmcore_running_texts"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert read_metric(address, "lmcore_generated_tokens_total") - generated < most


@pytest.mark.slow
def test_errors_are_a_line(page: Browser) -> None:
    fill(page, "a prompt that is longer than the model's context")
    page.driver.find_element(By.ID, "generate").click()
    error = page.wait("document.getElementById('error').textContent")
    assert error == "the prompt has at least 48 tokens, the model's context 16: shorten it"
    (line,) = page.console()
    assert "400" in line  # the browser's own, for every answer that is none
    # And what no slider allows is said before the server is asked.
    fill(page, "", seed="many")
    page.driver.find_element(By.ID, "generate").click()
    assert page.wait("document.getElementById('error').textContent").startswith("seed: ")


@pytest.mark.slow
def test_markup_is_text(page: Browser) -> None:
    markup = "<b onclick=x>"
    assert generate(page, markup, max_tokens=2, seed=1).startswith(markup)
    assert page.run("return document.querySelectorAll('#text b').length") == 0
    page.run(
        "const script = document.createElement('script'); script.textContent = 'window.hurt = true';"
        "document.body.append(script)"
    )
    assert page.run("return window.hurt") is None
    assert "Content Security Policy" in " ".join(page.console())


@pytest.mark.slow
def test_a_key_is_asked_for_and_kept_for_the_session(browser: Browser, project: Path) -> None:
    (project / "key").write_text(KEY)
    with serve(project, lambda port: command(port, "--api-key-file", "key"), "/health") as guarded:
        browser.open(guarded)
        assert "wants its key" in browser.wait("document.getElementById('error').textContent")
        browser.wait("!document.getElementById('token-field').hidden")
        browser.driver.find_element(By.ID, "token").send_keys(KEY + Keys.TAB)
        assert browser.wait("document.getElementById('model').textContent") == "model"
        assert browser.run("return document.getElementById('error').hidden")
        browser.driver.refresh()
        browser.wait("document.getElementById('model').textContent")
        assert len(generate(browser, "cat", max_tokens=3)) > len("cat")
        # In this tab alone, and nowhere but in the head of requests to this server.
        assert browser.run("return [localStorage.length, sessionStorage.length]") == [0, 1]
        assert all(url.startswith(f"{guarded}/") and KEY not in url for url in browser.requests())
    browser.driver.find_element(By.ID, "generate").click()  # when the server is gone
    assert browser.wait("document.getElementById('error').textContent") == "The server does not answer"


@pytest.mark.slow
@pytest.mark.parametrize("width", [320, 1280])
def test_nothing_sticks_out(page: Browser, width: int) -> None:
    with page.window(width):
        generate(page, "mat", max_tokens=16, seed=2)
        page.run(f"{TOKENS}[5].click()")
        assert page.run("return document.documentElement.scrollWidth") <= width


@pytest.mark.slow
def test_every_field_has_a_name(page: Browser) -> None:
    """As a screen reader says it."""
    fields = page.driver.find_elements(By.CSS_SELECTOR, "input, textarea, button:not([hidden])")
    assert len(fields) > 9
    assert [
        field.get_attribute("outerHTML") for field in fields if field.is_displayed() and not field.accessible_name
    ] == []
