"""Stage the pages of the documentation site in a folder, ready for `zensical build`.

    python docs/_generate.py [FOLDER]       # default: build/docs

The pages of docs/ are copied. The command reference is made from the command line itself, the page
on contributing from CONTRIBUTING.md. Tables and pictures of results/ come along. Links are written
for readers of the repository; here they get the paths that they have on the site, and links to
files that the site does not have become plain text.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import sys
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

ROOT = Path(__file__).resolve().parent.parent
DOCS, RESULTS = ROOT / "docs", ROOT / "results"

TYPES: dict[Any, str] = {str: "text", int: "whole number", float: "number", Path: "path"}
"""What the reader sees in place of Python's types."""

LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def main() -> None:
    """Stage all pages."""
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "docs"
    shutil.rmtree(out, ignore_errors=True)
    for source, target in sorted(sources().items()):
        path = out / target
        path.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix == ".md":
            path.write_text(relinked(source.read_text(), source, target))
        else:
            shutil.copyfile(source, path)
    (out / "commands.md").write_text(commands())


@functools.cache
def sources() -> dict[Path, Path]:
    """The files of the site, each with its path there."""
    kinds = (".css", ".md", ".png")
    found = {path: path.relative_to(DOCS) for path in DOCS.rglob("*") if path.suffix in kinds}
    found |= {path: path.relative_to(ROOT) for path in RESULTS.rglob("*") if path.suffix in kinds}
    if (contributing := ROOT / "CONTRIBUTING.md").exists():
        del found[DOCS / "contributing.md"]
        found[contributing] = Path("contributing.md")
    return found


def relinked(text: str, source: Path, target: Path) -> str:
    """The text with the links of `source` as they are at `target`; code blocks stay as they are."""
    pages = {path.resolve(): place for path, place in sources().items()}
    pages[ROOT / "docs" / "contributing.md"] = Path("contributing.md")

    def link(match: re.Match[str]) -> str:
        picture, words, address = match.groups()
        path, hash_, anchor = address.partition("#")
        if not path or "://" in path or path.startswith("mailto:"):
            return match[0]
        file = (source.parent / path).resolve()
        if not file.exists():
            sys.exit(f"{source.relative_to(ROOT)}: {path} leads nowhere")
        place = pages.get(file)
        if place is None:
            return words
        return f"{picture}[{words}]({os.path.relpath(place, target.parent)}{hash_}{anchor})"

    parts = re.split(r"(^```.*?^```$)", text, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("```") else LINK.sub(link, part) for part in parts)


def commands() -> str:
    """The page of all commands, from the command line itself."""
    import typer

    from ksm.cli import app

    root = typer.main.get_command(app)
    return "\n".join(["# Commands", "", *lines_of(root, "ksm", 2)])


def lines_of(command: Any, name: str, level: int) -> Iterator[str]:
    """A section on a command, and one on each command below it."""
    if below := getattr(command, "commands", None):
        if name == "ksm":
            yield "`ksm COMMAND --help` says the same in a terminal. A mistake in what you typed is"
            yield "one line on stderr, and exit status 1 or 2."
            yield ""
            yield "| command | what it does |"
            yield "|---|---|"
            for full, one in leaves(command, name):
                yield f"| [`{full}`](#{full.replace(' ', '-')}) | {first_line(one)} |"
            yield ""
        for key, one in below.items():
            if not one.hidden:
                yield from lines_of(one, f"{name} {key}", level)
        return
    yield f"{'#' * level} {name}"
    yield ""
    yield text_of(command.help or "")
    yield ""
    yield "```text"
    yield usage(command, name)
    yield "```"
    yield ""
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and not p.hidden]
    if arguments:
        yield "| argument | type | meaning |"
        yield "|---|---|---|"
        for one in arguments:
            yield f"| `{metavar(one)}` | {type_of(one)} | {cell(one.help)} |"
        yield ""
    if options:
        yield "| option | type | default | meaning |"
        yield "|---|---|---|---|"
        for one in options:
            names = ", ".join(f"`{n}`" for n in (*one.opts, *one.secondary_opts))
            kind = "" if one.is_flag else type_of(one)
            yield f"| {names} | {kind} | {default_of(one)} | {option_help(one)} |"
        yield ""


def leaves(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """The commands that do something, with their full names."""
    below = getattr(command, "commands", None)
    if below is None:
        yield name, command
        return
    for key, one in below.items():
        if not one.hidden:
            yield from leaves(one, f"{name} {key}")


def usage(command: Any, name: str) -> str:
    """The line that shows how the command is called."""
    parts = [name]
    for one in command.params:
        if one.param_type_name == "argument":
            word = metavar(one) + ("..." if one.nargs == -1 else "")
            parts.append(word if one.required else f"[{word}]")
    return " ".join([*parts, "[OPTIONS]"])


def metavar(parameter: Any) -> str:
    """The word that stands for an argument."""
    return parameter.metavar or parameter.name.strip("_").upper()


def type_of(parameter: Any) -> str:
    """The type of a value, as a word."""
    kind = parameter.type_descriptor.annotation
    while inner := [one for one in get_args(kind) if one is not type(None)]:
        if get_origin(kind) is Literal:
            break
        kind = inner[0]
    if parameter.metavar and parameter.param_type_name == "option":
        word = f"`{parameter.metavar}`"
    elif get_origin(kind) is Literal:
        word = ", ".join(f"`{choice}`" for choice in get_args(kind))
    elif issubclass(kind, Enum):
        word = ", ".join(f"`{choice.value}`" for choice in kind)
    else:
        word = TYPES[kind]
    if parameter.min is not None:
        word += f", at least {parameter.min}"
    if parameter.multiple or parameter.nargs == -1:
        word += "; may be repeated" if parameter.multiple else "; one or more"
    return word


def default_of(option: Any) -> str:
    """The default of an option; empty where there is none."""
    if option.is_flag and not option.default:
        return "off"
    value = option.default
    if value is None or callable(value) or value == "" or value == []:
        return ""
    return f"`{value}`"


def option_help(option: Any) -> str:
    """The help of an option, with the environment variable that sets it."""
    text = cell(option.help)
    return f"{text} Environment: `{option.envvar}`." if option.envvar else text


def first_line(command: Any) -> str:
    return cell((command.help or "").strip().split("\n\n")[0])


def cell(text: str | None) -> str:
    """A text as a cell of a table."""
    return text_of(text or "").replace("\n", " ").replace("|", r"\|").strip()


def text_of(text: str) -> str:
    """A help text as Markdown: words of the shell as code."""
    text = text.replace("\f", "").strip()
    text = re.sub(r"(?<!`)(--[a-z][a-z-]*)(?![`\w])", r"`\1`", text)
    return re.sub(r"(?<![`\w/])([A-Z]{3,}(?:/[\w*.]+)+)", r"`\1`", text)


if __name__ == "__main__":
    main()
