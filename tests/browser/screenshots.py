"""Saves a picture of each kind of page, as a desktop and a phone show it, light and dark.

    python tests/browser/screenshots.py FOLDER [PAGE]...

It makes the sample ledger that the tests look at, and a run that goes on meanwhile.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from serving import DESKTOP, PAGES, PHONE, chromium, make_small_ledger, served

from browsed import a_live_run, make_browsed_ledger


def main() -> None:
    """Take the pictures."""
    parser = argparse.ArgumentParser(description="Saves a picture of each kind of page.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("pages", nargs="*", metavar="PAGE", help=", ".join(kind.name for kind in PAGES))
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as made:
        sample, other = make_browsed_ledger(Path(made) / "ledger.db"), make_small_ledger(Path(made) / "other.db")
        with a_live_run(sample.path, Path(made) / "told"), served(sample.path, other) as at, chromium() as browser:
            for kind in PAGES:
                if asked.pages and kind.name not in asked.pages:
                    continue
                for size_name, (width, height) in (("desktop", DESKTOP), ("phone", PHONE)):
                    for scheme in ("light", "dark"):
                        context = browser.new_context(
                            viewport={"width": width, "height": height},
                            color_scheme="dark" if scheme == "dark" else "light",
                        )
                        page = context.new_page()
                        page.goto(f"{at.url}{kind.address(sample)}")
                        picture = asked.folder / f"{kind.name}-{size_name}-{scheme}.png"
                        page.screenshot(path=picture)
                        print(picture)
                        context.close()


if __name__ == "__main__":
    main()
