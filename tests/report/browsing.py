"""A browser's page as the tests use it."""

from __future__ import annotations

import time


class Visitor:
    """A page with what went wrong on it: console errors, exceptions, and requests to anywhere but `home`."""

    def __init__(self, browser, url: str, *, home: str = "file://", width: int = 1200, dark: bool = False) -> None:
        scheme = "dark" if dark else "light"
        self.context = browser.new_context(viewport={"width": width, "height": 850}, color_scheme=scheme)
        self.page = self.context.new_page()
        self.problems: list[str] = []
        self.page.on(
            "console", lambda message: message.type in ("error", "warning") and self.problems.append(message.text)
        )
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.problems.append("a dialog"), dialog.dismiss()))
        self.page.on("request", lambda request: self._check(request.url, home))
        self.page.goto(url)
        self.page.wait_for_selector("h1")

    def _check(self, url: str, home: str) -> None:
        if not url.startswith((home, "data:", "blob:")):
            self.problems.append(f"a request to {url}")


def until(page, expression: str, seconds: float = 20) -> None:
    """Wait until `expression` is true in `page`. Playwright's own wait compiles text there, which our policy forbids."""
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < end, f"never true: {expression}"
        time.sleep(0.03)
