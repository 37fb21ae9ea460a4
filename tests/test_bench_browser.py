"""The report in a real browser: light, dark and on a phone. Skipped where no Chromium is installed."""

import base64
import itertools
import json
import os
import re
import shutil
import subprocess

import pytest

from fastconv.benchmarks import compare, report, results

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium here (apt-get install chromium)"),
]
SCREENS = {"desk": (1280, 900, False), "phone": (390, 844, True)}


class Browser:
    """Chromium without a window, driven over a pipe by the DevTools protocol."""

    def __init__(self, profile):
        (far_in, self.requests), (self.answers, far_out) = os.pipe(), os.pipe()
        # The protocol's pipe is descriptors 3 and 4 of the browser.
        command = f'exec "$0" "$@" 3<&{far_in} 4>&{far_out}'
        arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--remote-debugging-pipe",
        ]
        self.process = subprocess.Popen(
            ["bash", "-c", command, BROWSER, *arguments, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(far_in, far_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(far_in)
        os.close(far_out)
        self.numbers, self.rest, self.events = itertools.count(1), b"", []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = None
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    session = None

    def ask(self, method, **params):
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.requests, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def _receive(self):
        while b"\0" not in self.rest:
            part = os.read(self.answers, 2**16)
            assert part, "the browser ended"
            self.rest += part
        text, _, self.rest = self.rest.partition(b"\0")
        return json.loads(text)

    def open(self, path, screen, scheme):
        width, height, mobile = SCREENS[screen]
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.events.clear()
        self.ask("Page.navigate", url=path.as_uri())
        self.run("new Promise(done => document.readyState === 'complete' ? done() : addEventListener('load', done))")

    def run(self, script):
        found = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def picture(self, path, whole=False):
        found = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.requests)
        os.close(self.answers)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    found = Browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def pages(made_up, tmp_path_factory):
    """The report of a run with everything in it, and a comparison."""
    folder = tmp_path_factory.mktemp("pages")
    suites = ("alexnet", "resnet50", "mobilenetv2", "audio", "pooling", "signal", "tiny")
    old, new = (made_up.run_of(suites, ("torch", "onnxruntime"), speed) for speed in (1.0, 1.2))
    old, new = results.document(old), results.document(new)
    (folder / "report.html").write_text(report.render(new), encoding="utf-8")
    (folder / "comparison.html").write_text(report.render_comparison(compare.compare(old, new)), encoding="utf-8")
    return folder


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("page", ["report", "comparison"])
def test_it_fits_and_can_be_read(browser, pages, tmp_path, page, screen, scheme):
    browser.open(pages / f"{page}.html", screen, scheme)
    kinds = [event["method"] for event in browser.events]
    assert "Runtime.exceptionThrown" not in kinds
    assert not [event for event in browser.events if event["method"] == "Log.entryAdded"]
    addresses = {event["params"]["request"]["url"].partition(":")[0] for event in browser.events
                 if event["method"] == "Network.requestWillBeSent"}  # fmt: skip
    assert addresses <= {"file"}, "the page loads something"
    assert browser.run("document.documentElement.scrollWidth <= innerWidth"), "the page is wider than the screen"
    assert browser.run(OVERLAPS) == []
    dark = scheme == "dark"
    assert (luminance(browser.run("getComputedStyle(document.body).backgroundColor")) < 0.2) == dark
    assert contrast(*browser.run(COLOURS)) > 4.5
    browser.picture(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 10_000


#: Texts of a drawing that lie over each other or beyond its edge.
OVERLAPS = """
[...document.querySelectorAll("figure svg")].filter(svg => svg.getBoundingClientRect().width).flatMap(svg => {
  const frame = svg.getBoundingClientRect();
  const boxes = [...svg.querySelectorAll("text")].map(text => [text.textContent, text.getBoundingClientRect()]);
  const meet = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 2
                      && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 4;
  return boxes.flatMap(([text, box], i) => [
    ...(box.left < frame.left - 2 || box.right > frame.right + 2 ? [text + " is cut off"] : []),
    ...boxes.slice(i + 1).filter(([, other]) => meet(box, other)).map(([other]) => text + " over " + other)]);
})
"""
COLOURS = "['color', 'backgroundColor'].map(name => getComputedStyle(document.body)[name])"


def luminance(colour):
    """Relative luminance, as WCAG 2 defines it."""
    channels = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first, second):
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_tables_sort(browser, pages):
    browser.open(pages / "report.html", "desk", "light")
    column = """
        (() => { const table = document.querySelector("table.rows"); const place = 2;
          table.tHead.rows[0].cells[place].click();
          const value = row => parseFloat(row.cells[place].querySelector("[data-value]").dataset.value);
          return [...table.tBodies[0].rows].map(value);
        })()"""
    up, down = browser.run(column), browser.run(column)
    assert up == sorted(up)
    assert down == sorted(down, reverse=True)
    assert len(up) > 100
