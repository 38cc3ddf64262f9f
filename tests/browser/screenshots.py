"""Saves a picture of each kind of page, as a desktop and a phone show it, light and dark.

    python tests/browser/screenshots.py FOLDER [PAGE]...

It makes the sample ledger that the tests look at, and a run that goes on meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from PIL import Image
from serving import DESKTOP, PAGES, PHONE, chromium, make_small_ledger, served

from browsed import a_live_run, make_browsed_ledger


def in_few_colours(picture: Path) -> None:
    """Make a picture small: pages have few colours, and a repository keeps every picture for ever."""
    with Image.open(picture) as whole:
        whole.convert("RGB").quantize(96).save(picture, optimize=True)


def main() -> None:
    """Take the pictures."""
    parser = argparse.ArgumentParser(description="Saves a picture of each kind of page.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("pages", nargs="*", metavar="PAGE", help=", ".join(kind.name for kind in PAGES))
    parser.add_argument("--within", type=Path, metavar="FOLDER", help="where the ledgers are made and stay")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    folder = asked.folder.absolute()
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(asked.within or scratch):
        made = Path.cwd()
        sample, other = make_browsed_ledger(made / "ledger.db"), make_small_ledger(made / "other.db")
        with a_live_run(sample.path, made / "told"), served(sample.path, other) as at, chromium() as browser:
            for kind in PAGES:
                if asked.pages and kind.name not in asked.pages:
                    continue
                for size_name, (width, height) in (("desktop", (DESKTOP[0], 1200)), ("phone", PHONE)):
                    for scheme in ("light", "dark"):
                        context = browser.new_context(
                            viewport={"width": width, "height": height},
                            color_scheme="dark" if scheme == "dark" else "light",
                        )
                        page = context.new_page()
                        page.goto(f"{at.url}{kind.address(sample)}")
                        picture = folder / f"{kind.name}-{size_name}-{scheme}.png"
                        page.screenshot(path=picture)
                        in_few_colours(picture)
                        print(picture)
                        context.close()


if __name__ == "__main__":
    main()
