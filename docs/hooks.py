"""Hooks of mkdocs: adapt pages written for the repository to the site."""

import re
from typing import Any

LINK = re.compile(r"\[([^\]]+)\]\((?:\.\./)+([^)]+)\)")


def on_page_markdown(markdown: str, page: Any, **_: object) -> str:
    """Links to files outside docs/: to the API page of a module, else the name of the file.

    ``[text](../captioner/metrics/scores.py)`` → ``[text](api/metrics.md#captioner.metrics.scores)``;
    ``[text](../benchmarks)`` → text (`benchmarks`), or only the name where the text says the same.
    """
    up = "../" * page.file.src_uri.count("/")

    def replaced(match: re.Match) -> str:
        text, path = match.groups()
        module = re.fullmatch(r"captioner/(?!cli/|configs/)(?:(\w+)/)?(\w+)\.py", path)
        if module:
            package, name = module.groups()
            return f"[{text}]({up}api/{package or 'captioner'}.md#captioner.{f'{package}.' if package else ''}{name})"
        return f"`{path}`" if path.endswith(text.strip("`")) else f"{text} (`{path}`)"

    return LINK.sub(replaced, markdown) if not page.file.src_uri.startswith("notebooks/") else markdown


def on_page_content(html: str, **_: object) -> str:
    """Remove what docstrings have of reStructuredText: roles such as :func:, and the second colon before an example."""
    html = re.sub(r":(?:attr|class|data|exc|func|meth|mod):(?=<code>)", "", html)
    return re.sub(r"::(?=</p>)", ":", html)
