"""The methods text as Markdown, HTML and LaTeX, with its citations and references."""

import html
import re
from collections.abc import Mapping
from dataclasses import dataclass

from markdown_it import MarkdownIt

_CITATION = re.compile(r"(?<!\\)\[@([^\]\s;]+(?:;\s*@[^\]\s;]+)*)\]")
_MARKED = r"(?:[^*\\]|\\.)+"
_INLINE = re.compile(rf"{_CITATION.pattern}|`([^`]+)`|(?<!\\)\*\*({_MARKED})\*\*|(?<![\\*])\*({_MARKED})\*(?!\*)")
_ENTRY = re.compile(r"@(\w+)\{([^,\s]+),(.*?)\n\}", re.DOTALL)
_FIELD = re.compile(r"^\s*(\w+)\s*=\s*\{(.*)\},?\s*$", re.MULTILINE)
_ACCENTS = {
    "'e": "é", "'a": "á", "'o": "ó", "`e": "è", "^o": "ô", "^e": "ê", '"e': "ë",
    '"o': "ö", '"u': "ü",
}  # fmt: skip
_TEX_ESCAPES = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{",
    "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}",
}  # fmt: skip
_TEX_HEAD = (
    "\\documentclass[11pt]{article}\n\\usepackage[T1]{fontenc}\n\\usepackage[utf8]{inputenc}\n"
    "\\usepackage{url}\n\\begin{document}\n\n"
)
_TEX_TAIL = "\n\\bibliographystyle{plain}\n\\bibliography{CITATION}\n\n\\end{document}\n"


@dataclass(frozen=True)
class Reference:
    """One entry of the bibliography: `fields` as plain text, `source` as BibTeX."""

    key: str
    fields: Mapping[str, str]
    source: str

    @property
    def short(self) -> str:
        """Author and year as cited in running text, e.g. ``Wolf et al., 2020``."""
        names = self.fields.get("author", self.key).split(" and ")
        surnames = [name.split(",")[0].strip() for name in names]
        author = surnames[0]
        if len(surnames) == 2 and surnames[1] != "others":
            author = f"{author} and {surnames[1]}"
        elif len(surnames) > 1:
            author = f"{author} et al."
        year = self.fields.get("year", "")
        return f"{author}, {year}" if year else author

    @property
    def long(self) -> str:
        """Authors, year, title and place, as in a list of references."""
        authors = self.fields.get("author", "").replace(" and others", " et al.").replace(" and ", "; ")
        place = " ".join(self.fields[name] for name in ("journal", "booktitle", "howpublished") if name in self.fields)
        volume = self.fields.get("volume", "")
        number = f"({self.fields['number']})" if "number" in self.fields else ""
        pages = self.fields.get("pages", "").replace("--", "\N{EN DASH}")
        where = f"{place} {volume}{number}".strip() + (f", {pages}" if pages else "")
        year = f" ({self.fields['year']})" if "year" in self.fields else ""
        return f"{authors}{year}. {self.fields.get('title', '')}. {where}."


def parse_bibliography(bibliography: str) -> dict[str, Reference]:
    """Return the entries of a BibTeX text by their keys, each field on a line of its own."""
    entries = {}
    for match in _ENTRY.finditer(bibliography):
        fields = {name.lower(): _plain_text(value) for name, value in _FIELD.findall(match.group(3))}
        entries[match.group(2)] = Reference(match.group(2), fields, match.group(0))
    return entries


def _plain_text(value: str) -> str:
    """Return a BibTeX value without braces, its accents as letters."""
    for accent, letter in _ACCENTS.items():
        value = value.replace(f"{{\\{accent}}}", letter)
    return re.sub(r"[{}]", "", value.replace(r"\url", ""))


def cited_keys(markdown: str) -> tuple[str, ...]:
    """Return the keys cited in a text, in the order of their first citation."""
    keys = [key for match in _CITATION.finditer(markdown) for key in _keys_of(match)]
    return tuple(dict.fromkeys(keys))


def _keys_of(match: re.Match[str]) -> list[str]:
    """Return the keys of one bracket, ``[@a; @b]``."""
    return [key.strip().removeprefix("@") for key in match.group(1).split(";")]


def used_references(markdown: str, bibliography: str) -> tuple[Reference, ...]:
    """Return the cited entries in order; a key without an entry is a ValueError."""
    entries = parse_bibliography(bibliography)
    missing = [key for key in cited_keys(markdown) if key not in entries]
    if missing:
        raise ValueError(
            f"The methods text cites {', '.join(missing)}, which the bibliography does not hold; "
            "add an entry for each key."
        )
    return tuple(entries[key] for key in cited_keys(markdown))


def markdown_html(markdown: str, bibliography: str, *, heading_shift: int = 0) -> str:
    """Return the text as an HTML fragment with author-year citations and the list of references.

    Raw HTML in the text is shown as text. `heading_shift` lowers every heading by so many levels.
    """
    references = used_references(markdown, bibliography)
    by_key = {reference.key: reference for reference in references}
    cited = _CITATION.sub(lambda m: f"({'; '.join(by_key[key].short for key in _keys_of(m))})", markdown)
    body = MarkdownIt("commonmark", {"html": False}).render(cited)
    body = re.sub(r"(</?h)([1-6])>", lambda m: f"{m.group(1)}{min(6, int(m.group(2)) + heading_shift)}>", body)
    if not references:
        return body
    level = min(6, 2 + heading_shift)
    items = "\n".join(f"<li>{_reference_html(reference)}</li>" for reference in references)
    return f'{body}<h{level}>References</h{level}>\n<ul class="references">\n{items}\n</ul>\n'


def _reference_html(reference: Reference) -> str:
    """Return one reference with a link to its DOI."""
    text = html.escape(reference.long)
    doi = reference.fields.get("doi")
    if doi is None:
        return text
    return f'{text} <a href="https://doi.org/{html.escape(doi)}">doi:{html.escape(doi)}</a>'


def markdown_tex(markdown: str) -> str:
    """Return headings, paragraphs, lists, code and citations of a Markdown text as a LaTeX document."""
    blocks = [_tex_block(block) for block in re.split(r"\n\s*\n", markdown.strip())]
    return _TEX_HEAD + "\n\n".join(blocks) + "\n" + _TEX_TAIL


def _tex_block(block: str) -> str:
    """Return one block of Markdown as LaTeX: a heading, a list or a paragraph."""
    heading = re.fullmatch(r"(#{1,3})\s+(.*)", block.strip())
    if heading:
        command = ("section", "subsection", "subsubsection")[len(heading.group(1)) - 1]
        return f"\\{command}*{{{_tex_inline(heading.group(2))}}}"
    if block.lstrip().startswith("- "):
        items = re.split(r"^\s*- ", block.strip(), flags=re.MULTILINE)[1:]
        lines = "\n".join(f"\\item {_tex_inline(' '.join(item.split()))}" for item in items)
        return f"\\begin{{itemize}}\n{lines}\n\\end{{itemize}}"
    return _tex_inline(block.strip())


def _tex_inline(text: str) -> str:
    """Return running text as LaTeX: escaped, with citations, code and emphasis."""
    pieces = []
    position = 0
    for match in _INLINE.finditer(text):
        pieces.append(tex_escape(_unescaped(text[position : match.start()])))
        _keys, code, strong, emphasis = match.groups()
        if code is not None:
            pieces.append(f"\\texttt{{{tex_escape(code)}}}")
        elif strong is not None:
            pieces.append(f"\\textbf{{{tex_escape(_unescaped(strong))}}}")
        elif emphasis is not None:
            pieces.append(f"\\emph{{{tex_escape(_unescaped(emphasis))}}}")
        else:
            pieces.append(f"\\cite{{{','.join(_keys_of(match))}}}")
        position = match.end()
    pieces.append(tex_escape(_unescaped(text[position:])))
    return "".join(pieces)


def _unescaped(text: str) -> str:
    """Return Markdown text with its backslash escapes resolved."""
    return re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", text)


def tex_escape(text: str) -> str:
    """Return text with the characters that LaTeX reads as commands escaped."""
    return "".join(_TEX_ESCAPES.get(character, character) for character in text)


def citation_files(markdown: str, bibliography: str, *, md_only: bool = False) -> dict[str, str]:
    """Return the contents of the files of the methods text.

    Parameters
    ----------
    markdown
        The text, as `methods_text` returns it.
    bibliography
        BibTeX with an entry for every key cited; only those cited are kept.
    md_only
        Leave HTML and LaTeX out.

    Returns
    -------
    dict
        ``CITATION.md`` and ``CITATION.bib``, and ``CITATION.html`` and ``CITATION.tex`` unless `md_only`.
    """
    sources = "\n\n".join(reference.source for reference in used_references(markdown, bibliography))
    files = {"CITATION.md": markdown, "CITATION.bib": sources + "\n"}
    if md_only:
        return files
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8"><title>Methods and references</title>'
        f"</head>\n<body>\n{markdown_html(markdown, bibliography)}</body>\n</html>\n"
    )
    return files | {"CITATION.html": page, "CITATION.tex": markdown_tex(markdown)}
