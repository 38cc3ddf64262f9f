"""Write the reference of the API, made of the docstrings, into a folder: python .ci/reference.py FOLDER

What pdoc complains about is an error, and so is a public name that is not on its page.
"""

from __future__ import annotations

import re
import sys
import warnings
from importlib import import_module
from pathlib import Path

import pdoc

import ttasks

warnings.simplefilter("error")

# Public things say that they live in `ttasks`. pdoc looks there for the source of each and for the names in its
# annotations, and finds neither, so in this process they tell where they really are.
for home, names in ttasks._HOMES.items():
    module = import_module(home)
    for name in names:
        thing = getattr(module, name)
        if hasattr(thing, "__module__"):
            thing.__module__ = home

folder = Path(sys.argv[1])
pdoc.render.configure(docformat="google", show_source=False)
pdoc.pdoc("ttasks", output_directory=folder)
page = (folder / "ttasks.html").read_text("utf-8")
missing = [name for name in ttasks.__all__ if not re.search(rf'<section id="{name}">', page)]
sys.exit(f"not on the page that pdoc made: {', '.join(missing)}" if missing else 0)
