"""Hooks of mkdocs: adapt pages written for the repository to the site."""

import re


def on_page_markdown(markdown: str, **_: object) -> str:
    """A link to a file that is not on the site becomes its name: ``[text](../path)`` → text (`path`)."""
    return re.sub(r"\[([^\]]+)\]\(\.\./([^)]+)\)", r"\1 (`\2`)", markdown)


def on_page_content(html: str, **_: object) -> str:
    """Remove the roles of docstrings, such as :func:."""
    return re.sub(r":(?:attr|class|data|exc|func|meth|mod):(?=<code>)", "", html)
