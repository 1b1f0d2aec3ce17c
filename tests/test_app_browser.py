"""The app in a real browser: what a visitor sees, on a computer and on a phone."""

from __future__ import annotations

import os
import shutil
import threading
import time

import numpy as np
import pytest
from PIL import Image

from glide_cli import command_parser


pytestmark = pytest.mark.slow
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage"
)
COMPUTER, PHONE = (1280, 900), (390, 844)
TIMEOUT = 300  # seconds, on a busy machine


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A page of the shapes world, and its studio."""
    pytest.importorskip("gradio", reason="the app needs the extra `app`")
    from glide_cli import page

    os.environ["GRADIO_TEMP_DIR"] = str(tmp_path_factory.mktemp("gradio"))
    args = command_parser("app").parse_args(
        ["--device", "cpu", "--model", "shapes", "--steps", "12", "--super-res-steps", "4"]
    )
    studio = page.load_studio(args)
    app = page.build_page(studio)
    yield page.start(app, "127.0.0.1"), studio
    app.close()
    del os.environ["GRADIO_TEMP_DIR"]


class Visitor:
    """A tab of Chromium."""

    def __init__(self, url: str, size: tuple[int, int]) -> None:
        from selenium import webdriver

        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for flag in FLAGS.split():
            options.add_argument(flag)
        self.driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
        self.size = {"width": size[0], "height": size[1]}
        screen = self.size | {"deviceScaleFactor": 1, "mobile": size == PHONE}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        self.driver.get(url)
        self.wait("button.primary")
        time.sleep(1)

    def all(self, selector: str) -> list:
        return [each for each in self.driver.find_elements("css selector", selector) if each.is_displayed()]

    def wait(self, selector: str, text: str = ""):
        """The first element that is shown and has a text."""
        end = time.monotonic() + TIMEOUT
        while time.monotonic() < end:
            try:
                for each in self.all(selector):
                    if text in each.text:
                        return each
            except Exception as error:  # the page replaced it meanwhile
                last = error
            time.sleep(0.05)
        self.screenshot("missing")
        shown = [each.text for each in self.all(".live")]
        raise AssertionError(f"{selector} with {text!r} does not appear beside {shown}: {locals().get('last')}")

    def click(self, text: str, selector: str = "button") -> None:
        self.wait(selector, text).click()

    def tab(self, name: str) -> None:
        self.click(name, "button[role=tab]")
        self.wait("button.primary", name)
        time.sleep(1)

    def ask(self, prompt: str) -> None:
        field = self.wait("textarea")
        field.clear()
        field.send_keys(prompt)
        self.wait("button.primary").click()

    def set_steps(self, steps: int) -> None:
        """Of the open tab."""
        self.click("Options")
        field = self.wait("input[type=number][aria-label*=Steps]")
        field.clear()
        field.send_keys(str(steps), "\ue004")
        self.click("Options")

    def paint(self) -> None:
        """A stroke across the middle of the editor."""
        from selenium.webdriver import ActionChains

        canvas = self.wait("canvas")
        strokes = ActionChains(self.driver).move_to_element(canvas).move_by_offset(-40, -20).click_and_hold()
        strokes.move_by_offset(40, 20).move_by_offset(40, 20).release().perform()
        time.sleep(1)

    def upload(self, path) -> None:
        """Drop a file into the open tab."""
        is_open = "return arguments[0].closest('[role=tabpanel]').offsetParent !== null"
        inputs = self.driver.find_elements("css selector", "input[type=file]")
        field, *_ = [each for each in inputs if self.driver.execute_script(is_open, each)]
        field.send_keys(str(path))

    def is_whole(self, element) -> bool:
        """Whether an element is all in the window."""
        box = self.driver.execute_script("return arguments[0].getBoundingClientRect().toJSON()", element)
        sides = box["left"] >= 0 and box["right"] <= self.size["width"]
        return sides and box["top"] >= 0 and box["bottom"] <= self.size["height"]

    def natural_size(self, image) -> list[int]:
        self.driver.execute_script("return arguments[0].decode()", image)
        return self.driver.execute_script("return [arguments[0].naturalWidth, arguments[0].naturalHeight]", image)

    def screenshot(self, name: str) -> None:
        if folder := os.environ.get("SCREENSHOTS"):
            self.driver.save_screenshot(f"{folder}/{name}.png")


@pytest.fixture
def visit(served):
    """A function that opens the page in a browser."""
    pytest.importorskip("selenium", reason="the tests in a browser need selenium")
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("the tests in a browser need chromium and chromedriver")
    visitors = []

    def visit(size=COMPUTER) -> Visitor:
        visitors.append(Visitor(served[0], size))
        return visitors[-1]

    yield visit
    for visitor in visitors:
        visitor.driver.quit()


def wait_until_free(studio) -> float:
    """Seconds until nothing runs or waits."""
    begin = time.monotonic()
    while len(studio.turns):
        assert time.monotonic() - begin < TIMEOUT
        time.sleep(0.02)
    return time.monotonic() - begin


@pytest.fixture
def go(served, monkeypatch):
    """An event that a request waits for after each step: what is seen meanwhile does not depend on who is faster."""
    go, pass_on = threading.Event(), served[1].turns.pass_on

    def wait(job) -> None:
        go.wait(TIMEOUT)
        pass_on(job)

    monkeypatch.setattr(served[1].turns, "pass_on", wait)
    yield go
    go.set()


@pytest.mark.parametrize("size", [COMPUTER, PHONE], ids=["computer", "phone"])
def test_the_preview_appears_and_the_whole_image_and_its_seed_are_seen(visit, size, go):
    visitor = visit(size)
    begin = time.monotonic()
    visitor.ask("a red circle above a blue square")
    visitor.wait(".live img")
    print(f"first preview after {time.monotonic() - begin:.1f} s")
    assert visitor.is_whole(visitor.wait("button", "Stop"))
    visitor.screenshot(f"preview-{size[0]}")
    go.set()
    image = visitor.wait(".results img")
    time.sleep(2)
    visitor.screenshot(f"result-{size[0]}")
    assert visitor.natural_size(image) == [128, 128]
    assert visitor.is_whole(image)
    assert visitor.is_whole(visitor.wait(".live", "Seed "))
    assert visitor.driver.execute_script("return document.documentElement.scrollWidth") <= size[0]


def test_stop_keeps_the_image_as_far_as_it_is(visit, served):
    visitor = visit()
    visitor.set_steps(250)
    visitor.ask("a green star")
    visitor.wait(".live img")
    visitor.click("Stop")
    print(f"free {wait_until_free(served[1]):.2f} s after Stop")
    visitor.wait(".live", "Stopped at step")
    assert visitor.natural_size(visitor.wait(".results img")) == [128, 128]


def test_a_closed_tab_stops(visit, served):
    visitor = visit()
    visitor.set_steps(250)
    visitor.ask("a green star")
    visitor.wait(".live img")
    assert len(served[1].turns) == 1
    visitor.driver.close()
    print(f"free {wait_until_free(served[1]):.2f} s after the tab was closed")


def test_a_photo_is_edited_at_its_own_size(visit, tmp_path):
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
    small.resize((1600, 1200), Image.Resampling.BICUBIC).save(tmp_path / "holiday.jpg")
    visitor = visit()
    visitor.tab("Edit")
    visitor.upload(tmp_path / "holiday.jpg")
    visitor.wait(".file-preview, .file-preview-holder", "holiday")
    time.sleep(10)
    visitor.paint()
    visitor.screenshot("painted")
    visitor.ask("a green star")
    assert visitor.natural_size(visitor.wait(".results img")) == [1600, 1200]


def test_the_prompt_travels_with_the_image(visit):
    visitor = visit()
    visitor.ask("a green star")
    visitor.wait(".results img")
    visitor.click("Edit this")
    visitor.wait("button.primary", "Edit")
    time.sleep(3)
    assert visitor.wait("textarea").get_attribute("value") == "a green star"
    visitor.paint()
    visitor.ask("a green star on a black background")
    assert visitor.natural_size(visitor.wait(".results img")) == [128, 128]


def test_errors_stay(visit, tmp_path):
    visitor = visit()
    visitor.wait("button.primary").click()
    visitor.wait(".live .error", "The prompt is empty")
    time.sleep(12)  # a toast is gone by now
    visitor.wait(".live .error", "The prompt is empty")
    (tmp_path / "letter.png").write_text("Dear model")
    visitor.tab("Edit")
    visitor.upload(tmp_path / "letter.png")
    visitor.wait(".live .error", "letter.png cannot be read as an image")
    visitor.screenshot("error")
