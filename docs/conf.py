"""Settings of the pages that `make docs` builds. Everything is local: no fonts, scripts or styles from elsewhere."""

import bitwright

project = "Bitwright"
author = "The Bitwright authors"
copyright = f"2026, {author}"
release = version = bitwright.__version__

extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
# The code blocks are shown as they are; `console` and `toml` are known to the highlighter, `text` means none.
highlight_language = "text"

html_theme = "furo"
html_title = f"Bitwright {release}"
html_copy_source = False
html_show_sphinx = False
