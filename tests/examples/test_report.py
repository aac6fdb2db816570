"""The HTML report, opened in a browser."""

import shutil
import subprocess
from pathlib import Path

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
COUNT_IMAGES = """<script>
addEventListener("load", () => {
  const shown = [...document.images].filter((image) => image.complete && image.naturalWidth > 0);
  const entries = performance.getEntriesByType("resource");
  const loaded = entries.filter((entry) => !entry.name.startsWith("data:"));
  document.title = `shows ${shown.length} of ${document.images.length}, loads ${loaded.length}`;
});
</script>"""


@pytest.mark.skipif(BROWSER is None, reason=f"none of {', '.join(BROWSERS)} is installed")
def test_a_browser_shows_every_figure_and_loads_nothing_else(
    elbo_run: Path, tmp_path: Path
) -> None:
    page = (elbo_run / "report.html").read_text(encoding="utf-8")
    watched = tmp_path / "watched.html"
    watched.write_text(page.replace("</head>", f"{COUNT_IMAGES}</head>"), encoding="utf-8")
    assert BROWSER is not None
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", watched.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert "<title>shows 4 of 4, loads 0</title>" in dom
