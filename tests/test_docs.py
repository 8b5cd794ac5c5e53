"""What the documents print can be typed, and where they point something is."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import posixpath
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import cv2
import pytest

from scripts import make_cli_docs
from tests.conftest import ROOT
from unet_batch.cli import main
from unet_batch.model.zoo import BUNDLED

assert isinstance(main, click.Group)

DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (
        *(ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "unet_batch" / "model" / "weights").glob("*.md"),
        *(ROOT / "engines").glob("*.md"),
    )
)
# Options of other programs that the documents speak of.
FOREIGN_OPTIONS = {"--strict", "--cov", "--durations", "--nproc-per-node", "--array"}


def read(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """Language and contents of each fenced block."""
    for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        yield found[1], found[2]


def prose(text: str) -> str:
    """The text without fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def spans(text: str) -> list[str]:
    """What stands between backticks in the prose, on one line."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(text))]


def anchors(text: str) -> set[str]:
    """The anchors of a document's headings, as a forge makes them."""
    found = set()
    for heading in re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE):
        words = re.sub(r"[^\w\- ]", "", heading.replace("`", "").strip().lower())
        found.add(words.replace(" ", "-"))
    return found


def dead_links(document: str, text: str) -> list[str]:
    """Links of `text`, standing where `document` stands, that lead nowhere."""
    dead = []
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", prose(text))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        place = posixpath.normpath(posixpath.join(posixpath.dirname(document), path)) if path else document
        there = (ROOT / place).exists()
        if there and anchor:
            there = anchor in anchors(text if place == document else read(place))
        if not there:
            dead.append(target)
    return dead


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command in the fenced blocks that a terminal is shown in."""
    for language, block in blocks(text):
        if language in ("sh", "console", "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                yield from split(line)
    for indented in re.findall(r"^    ((?:unet-batch|python|pip|mkdocs) .+)$", text, re.MULTILINE):
        yield from split(indented)


def split(line: str) -> Iterator[list[str]]:
    """The commands of one line, comments and redirections left out."""
    words: list[str] = []
    for word in [*shlex.split(line, comments=True), "&&"]:
        if word in ("&&", "|", ">", ";"):
            if words and words[0] != "$":
                yield words
            words = []
            if word == ">":
                return
        else:
            words.append(word)


def complaint(words: list[str]) -> str:
    """What is wrong with a command, "" if it can be typed; other programs' commands are not looked at."""
    program = posixpath.basename(words[0])
    if program in ("torchrun", "uvx"):
        inner = words.index("unet-batch" if program == "uvx" else "unet_batch")
        return complaint(["unet-batch", *words[inner + 1 :]])
    if program in ("python", "python3") and words[1:2] == ["-m"]:
        return script_complaint(words[2], words[3:]) if words[2].startswith("scripts.") else ""
    if program == "pip":
        return extras_complaint(words)
    return click_complaint(words[1:]) if program == "unet-batch" else ""


def click_complaint(words: list[str], *, whole: bool = True) -> str:
    """Parse `words` as unet-batch does. Not `whole`: arguments may be missing, as they are in prose."""
    if not words or words[0] in ("-h", "--help", "-V", "--version"):
        return ""
    command = main.commands.get(words[0])
    if command is None:
        return f"no command {words[0]}"
    for word in words:
        if word.endswith(".toml"):  # a file of options is read while the line is parsed
            Path(word).touch()
    # With its parent: click keeps the names of the option for help from the first context it makes.
    parent = click.Context(main, info_name="unet-batch", **main.context_settings)
    try:
        command.make_context(words[0], list(words[1:]), parent=parent)
    except click.exceptions.Exit:
        return ""
    except click.MissingParameter as error:
        return error.format_message() if whole else ""
    except click.UsageError as error:
        return error.format_message()
    return ""


def script_complaint(module: str, words: list[str]) -> str:
    """Whether a script of ours exists, and knows the options it is given."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return f"no module {module}"
    origin = Path(spec.origin)
    files = [*origin.parent.rglob("*.py")] if origin.name == "__init__.py" else [origin]
    source = "".join(file.read_text(encoding="utf-8") for file in files)
    unknown = [
        word for word in words if re.match(r"--?[a-z]", word) and not re.search(f'"{word}["=]', source)
    ]
    return f"{module}: {unknown}" if unknown else ""


def extras_complaint(words: list[str]) -> str:
    """Whether the extras of a `pip install` are declared."""
    project = read("pyproject.toml").partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    declared = set(re.findall(r"^([a-z-]+) = ", project, re.MULTILINE))
    asked = {
        name
        for word in words
        for found in re.findall(r"(?:\.|unet-batch)\[([a-z,-]+)\]", word)
        for name in found.split(",")
    }
    return f"no extra {sorted(asked - declared)}" if asked - declared else ""


@pytest.fixture(autouse=True)
def _nothing_has_to_exist(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The files that documents speak of are not there, which is not what is tested."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(click.Path, "convert", lambda self, value, parameter, context: value)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    assert dead_links(document, read(document)) == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_can_be_typed(document: str) -> None:
    complaints = {" ".join(words): complaint(words) for words in commands(read(document))}
    assert {command: why for command, why in complaints.items() if why} == {}


@pytest.mark.parametrize("document", [name for name in DOCUMENTS if name != "CHANGELOG.md"])
def test_commands_in_the_prose_can_be_typed(document: str) -> None:
    complaints = {}
    for span in spans(read(document)):
        words = shlex.split(span) if span.startswith(("unet-batch ", "python -m ", "pip ", "uvx ")) else []
        if words and words[0] == "unet-batch":
            if words[1].isupper():  # COMMAND
                continue
            complaints[span] = click_complaint(words[1:], whole=False)
        elif words:
            complaints[span] = complaint([word for word in words if word not in ("...",)])
    assert {span: why for span, why in complaints.items() if why} == {}


@pytest.mark.parametrize("document", [name for name in DOCUMENTS if name != "CHANGELOG.md"])
def test_options_in_the_prose_exist(document: str) -> None:
    ours = {
        option
        for command in main.commands.values()
        for parameter in command.params
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    known = {*ours, *FOREIGN_OPTIONS, "--help", "--version"}
    named = {span.split()[0].partition("=")[0] for span in spans(read(document)) if span.startswith("--")}
    assert named - known == set()


def test_the_checks_see_what_is_wrong() -> None:
    assert dead_links(
        "README.md", "[a](docs/nowhere.md) [b](docs/run.md#nowhere) [c](docs/run.md#formats)"
    ) == [
        "docs/nowhere.md",
        "docs/run.md#nowhere",
    ]
    wrong = "```console\nunet-batch run x --no-such\nunet-batch walk\nunet-batch run  # nothing\n```\n"
    assert all(complaint(words) for words in commands(wrong))
    assert len([*commands(wrong)]) == 3
    assert complaint(["python", "-m", "scripts.nothing"])
    assert complaint(["python", "-m", "scripts.train_models", "classic", "--no-such"])
    assert complaint(["pip", "install", ".[nothing]"])
    assert not complaint(["unet-batch", "run", "x", "--save", "mask"])


@pytest.mark.parametrize("document", DOCUMENTS)
def test_snippets_of_python_compile(document: str) -> None:
    for language, block in blocks(read(document)):
        if language == "python":
            ast.parse(block)


def test_the_snippet_of_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    from unet_batch.scenes import samples

    samples.write_samples("drawn", 1, (64, 96), seed=0)
    photo = next(Path("drawn").rglob("*.jpg"))
    cv2.imwrite("car.jpg", cv2.imread(str(photo)))
    (snippet,) = [block for language, block in blocks(read("README.md")) if language == "python"]
    scope = {"paths": ["car.jpg", "missing.jpg"]}
    exec(compile(snippet, "README.md", "exec"), scope)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("car.jpg ")
    assert printed[1].startswith("missing.jpg ")
    assert "no such file" in printed[1]
    assert Path("out/masks/car.png").is_file()
    assert Path("out/overlays/car.jpg").is_file()


def test_the_snippet_in_the_python_page_is_that_of_the_readme() -> None:
    first = next(block for language, block in blocks(read("docs/python.md")) if language == "python")
    assert ("python", first) in blocks(read("README.md"))


def test_the_readme_is_short() -> None:
    text = read("README.md")
    assert len(text.splitlines()) <= 120
    assert len(text.split()) <= 900


def test_the_readme_shows_one_table_of_results() -> None:
    results = re.findall(r"^\|[^\n]*Dice[^\n]*\n\|[-|]+\n((?:\|.*\n)+)", read("README.md"), re.MULTILINE)
    assert len(results) == 1
    assert sorted(re.findall(r"^\| `(\w+)` \|", results[0], re.MULTILINE)) == sorted(BUNDLED)


@pytest.mark.parametrize("name", BUNDLED)
@pytest.mark.parametrize("document", ["README.md", "docs/models.md"])
def test_tables_of_models_say_the_terms_of_each(document: str, name: str) -> None:
    kind = BUNDLED[name].terms.partition(":")[0]
    assert re.search(rf"^\| `{name}` \|.*\b{re.escape(kind)}\b", read(document), re.MULTILINE)
    assert f"cards/{name}.md" in read(".mkdocs/mkdocs.yml")


def test_every_folder_of_the_package_is_in_the_readme() -> None:
    text = read("README.md")
    for path in (ROOT / "unet_batch").iterdir():
        if path.is_dir() and path.name != "__pycache__":
            assert f"{path.name}/`" in text, path.name


def test_the_reference_of_the_commands_is_as_they_are() -> None:
    pinned = re.search(r"^click==(.+)$", read("constraints.txt"), re.MULTILINE)
    assert pinned
    if importlib.metadata.version("click") != pinned[1]:
        pytest.skip(f"click wraps help in its own way in each version; the page is made with {pinned[1]}")
    assert read("docs/cli.md") == make_cli_docs.page(), "run: python -m scripts.make_cli_docs"


def test_every_message_in_the_page_of_errors_is_one_of_ours() -> None:
    ours = "\0".join(
        "".join(messages(path.read_text(encoding="utf-8"))) for path in (ROOT / "unet_batch").rglob("*.py")
    )
    page = read("docs/errors.md").partition("## Messages")[2]
    strange = []
    for row in re.findall(r"^\| (`[^|]+) \|", page, re.MULTILINE):
        for message in re.findall(r"`([^`]+)`", row):
            parts = re.split(r"'X'|\.\.\.|\b[A-Z][A-Z]*\b(?!-)|\d+|%", message)
            strange += [part for part in map(str.strip, parts) if len(part) > 8 and part not in ours]
    assert strange == []


def messages(source: str) -> Iterator[str]:
    """The texts in a program, with a gap wherever a value is put in."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value + "\0"


def test_the_tree_of_errors_is_that_of_the_program() -> None:
    from unet_batch import errors

    (tree,) = [block for language, block in blocks(read("docs/errors.md")) if language == "text"]
    assert tree.strip() in str(errors.__doc__)


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason='mkdocs is not installed: pip install ".[docs]"')
    settings = str(ROOT / ".mkdocs" / "mkdocs.yml")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", settings, "-d", str(tmp_path / "site")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    for page in ("index", "run", "cli", "log/2026-11-20", "project/architecture", "cards/default"):
        assert (tmp_path / "site" / f"{page}.html").is_file(), page
