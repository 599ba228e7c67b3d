"""The documents tell the truth: commands exist, citations and dependencies are listed, links lead on."""

from __future__ import annotations

import ast
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from fourfold.cli.main import main

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
COMMANDS = (
    "chat", "generate", "serve", "inspect", "plan", "bench", "verify", "export", "merge", "synth", "train",
    "distil", "eval", "kernels",
)  # fmt: skip

SECTION = r"\d(?:\.\d+)+(?:, eq\. \d+(?:-\d+)?)?"
CITATION = re.compile(rf"V4 report ({SECTION}(?:(?:; | and |, and ){SECTION})*)")


def cited(text: str) -> Iterator[tuple[str, range | None]]:
    """(section, equations) of every citation, docstrings unwrapped."""
    for match in CITATION.finditer(" ".join(text.split())):
        for section, first, last in re.findall(r"(\d(?:\.\d+)+)(?:, eq\. (\d+)(?:-(\d+))?)?", match[1]):
            yield section, range(int(first), int(last or first) + 1) if first else None


def sections() -> dict[str, range]:
    """The table in notation.md: section -> equations."""
    rows = re.findall(
        r"^\| (\d[\d.]*) \| ([\d-]*) ?\|", (ROOT / "docs" / "notation.md").read_text(encoding="utf-8"), re.M
    )
    return {
        section: range(int(span.split("-")[0]), int(span.split("-")[-1]) + 1) if span else range(0)
        for section, span in rows
    }


def test_every_citation_is_in_the_notation():
    known, used = sections(), set()
    for path in sorted((ROOT / "fourfold").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        assert text.count("V4 report") == len(CITATION.findall(" ".join(text.split()))), (
            f"{path}: cites in another form"
        )
        for section, equations in cited(text):
            used.add(section)
            assert section in known, f"{path} cites V4 report {section}; docs/notation.md does not list it"
            if equations is not None:
                assert set(equations) <= set(known[section]), f"{path} cites {section}, eq. {equations}"
    assert known.keys() == used, "docs/notation.md lists sections that nothing cites"


def test_the_citation_pattern():
    text = "V4 report 2.3.1, eq. 9-12 and 2.3.2,\n    eq. 20-23.  Also V4 report 2.2."
    assert list(cited(text)) == [("2.3.1", range(9, 13)), ("2.3.2", range(20, 24)), ("2.2", None)]


def test_dependencies_are_the_projects():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    wanted = [
        *project["project"]["dependencies"],
        *project["build-system"]["requires"],
        *(one for extra in extras.values() for one in extra),
    ]
    names = {re.split(r"[^\w-]", requirement)[0] for requirement in wanted} - {"fourfold"}
    page = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| ([\w-]+) \|", page, re.M)) - {"package"}
    assert listed - {"---"} == names


def shell_lines(path: Path) -> Iterator[list[str]]:
    """`fourfold …` and `make …` commands of a document: in sh blocks and in backticks."""
    text = path.read_text(encoding="utf-8")
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.S))
    inline = re.findall(r"`((?:fourfold|make) [^`]*)`", re.sub(r"```.*?```", "", text, flags=re.S))
    for line in [*blocks.splitlines(), *inline]:
        words = shlex.split(line, comments=True)
        if words and words[0] in ("fourfold", "make", ".ci/run"):
            yield words


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_in_documents_exist(path, capfd):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for words in shell_lines(path):
        if words[0] == "make":
            targets = [word for word in words[1:] if "=" not in word]
            assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets), words
        elif words[0] == "fourfold" and words[1] in COMMANDS:
            assert main([words[1], "--help"]) == 0
            shown = capfd.readouterr().out
            assert all(option in shown for option in words if option.startswith("--")), words
        elif words[0] == "fourfold":
            assert words[1] in ("--version", "--help"), words


def test_readme_names_every_command_and_no_other():
    named = {words[1] for words in shell_lines(ROOT / "README.md") if words[0] == "fourfold"}
    assert named == set(COMMANDS)


def test_the_first_screen_of_the_readme():
    """One sentence, one install line, five lines of Python, one command, one table, the machine."""
    screen = (ROOT / "README.md").read_text(encoding="utf-8").split("\n## ")[0]
    install, python, command = re.findall(r"```(?:sh|python)\n(.*?)```", screen, re.S)
    assert len(install.splitlines()) == len(command.splitlines()) == 1
    assert len([line for line in python.splitlines() if line]) <= 5
    ast.parse(python)
    assert len(re.findall(r"^\|---", screen, re.M)) == 1
    assert "Machine: " in screen
    assert len(screen.splitlines()) <= 40


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_files_that_notation_names_exist():
    page = (ROOT / "docs" / "notation.md").read_text(encoding="utf-8") + (
        ROOT / "docs" / "design.md"
    ).read_text(encoding="utf-8")
    for name in set(re.findall(r"`([\w/]+\.py)`", page)):
        assert (ROOT / "fourfold" / name).exists() or (ROOT / name).exists(), name


def test_the_changelog_keeps_the_form():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## \[(Unreleased|\d+\.\d+\.\d+)\]", text, re.M)
    assert set(re.findall(r"^### (\w+)", text, re.M)) <= {
        "Added",
        "Changed",
        "Deprecated",
        "Removed",
        "Fixed",
        "Security",
    }
