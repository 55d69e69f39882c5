"""For mkdocs: links to files that are in the repository, but not on the site, become their names."""

import re


def on_page_markdown(markdown: str, **_: object) -> str:
    """``[text](../path)`` → text (`path`)."""
    return re.sub(r"\[([^\]]+)\]\(\.\./([^)]+)\)", r"\1 (`\2`)", markdown)
