"""Plain text to calibrate and to measure perplexity on, found without a network."""

from __future__ import annotations

import bz2
import html
import importlib.util
import re
from pathlib import Path
from typing import Literal

from tamis.errors import TamisFileError

Part = Literal["calibrate", "evaluate"]


def default_text(part: Part = "evaluate", path: str | Path | None = None) -> tuple[str, str]:
    """(name of the source, text) for calibration or evaluation, found without a network.

    `path` where given; else Wikipedia pages out of the installed gensim package, whose files are
    read without importing it; else the topics of Python's own help. Calibration takes the first
    half of the last two and evaluation the second, so that the halves never meet.

    Raises:
        TamisFileError: `path` cannot be read as UTF-8 text.
    """
    if path is not None:
        try:
            return Path(path).name, Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise TamisFileError(
                f"default_text: path: got {path} ({error}), wanted a UTF-8 text file; "
                "name one that can be read."
            ) from error
    wikipedia = _wikipedia_pages()
    if wikipedia:
        return "Wikipedia pages in gensim", _half("\n\n".join(wikipedia), part)
    return "Python help topics", _half(_help_topics(), part)


def _half(text: str, part: Part) -> str:
    middle = text.find("\n\n", len(text) // 2)
    return text[:middle] if part == "calibrate" else text[middle:]


def _help_topics() -> str:
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def _wikipedia_pages() -> list[str]:
    spec = importlib.util.find_spec("gensim")
    if spec is None or spec.origin is None:
        return []
    folder = Path(spec.origin).parent / "test" / "test_data"
    dumps = sorted(folder.glob("enwiki-latest-pages-articles1*-shortened.bz2"))
    if not dumps:
        return []
    with bz2.open(dumps[0], "rt", encoding="utf-8") as file:
        pages = re.findall(r"<text[^>]*>(.*?)</text>", file.read(), re.DOTALL)
    stripped = (strip_markup(html.unescape(page)) for page in pages)
    return [page for page in stripped if len(page) > 1000]


def strip_markup(page: str) -> str:
    """The prose of a wiki page: paragraphs of at least 80 characters, without links and notes."""
    page = re.sub(r"<!--.*?-->|<ref[^>]*/>|<ref.*?</ref>", "", page, flags=re.DOTALL)
    page = re.sub(r"<(math|gallery|code|source|timeline).*?</\1>", "", page, flags=re.DOTALL)
    for inner in (r"\{\{[^{}]*\}\}", r"\{\|[^{}]*?\|\}", r"\[\[(?:File|Image):[^\[\]]*\]\]"):
        page = _until_stable(inner, "", page)
    page = re.sub(r"\[\[(?!File:|Image:)(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]", r"\1", page)
    page = _until_stable(r"\[\[(?:File|Image):[^\[\]]*\]\]", "", page)
    page = re.sub(r"\[https?://\S+ ?([^\]]*)\]", r"\1", page)
    page = re.sub(r"<[^<>]+>|'{2,}", "", page)
    lines = (html.unescape(line).strip() for line in page.splitlines())
    return "\n\n".join(line for line in lines if len(line) >= 80 and line[0] not in "*#:;|!={}")


def _until_stable(pattern: str, by: str, text: str) -> str:
    while True:  # each pass removes the innermost of nested marks, so it ends
        text, count = re.subn(pattern, by, text)
        if count == 0:
            return text
