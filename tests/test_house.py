"""The size and the language of the code: what a reader can hold at once, and plain sentences."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "maskformer_hf"
SOURCES = sorted(PACKAGE.rglob("*.py"))
# Code of earlier versions, kept as it was pushed to the Hub.
AS_IT_WAS = ROOT / "tests" / "fixtures"
EVERYWHERE = SOURCES + sorted(
    path
    for folder in ("tests", "benchmarks", "examples")
    for path in (ROOT / folder).rglob("*.py")
    if not path.is_relative_to(AS_IT_WAS)
)
MAX_LINES, MEDIAN_LINES, MAX_FUNCTION, MAX_PARAMETERS = 400, 150, 60, 8
# Functions whose arguments transformers prescribes: it calls them, or its users do.
SIGNATURES_OF_TRANSFORMERS = {
    "models/image_processing_maskformer.py": {"_preprocess_image_like_inputs", "post_process_instance_segmentation"},
    "models/modeling_maskformer.py": {"forward"},
    "models/modeling_per_pixel.py": {"forward"},
}


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    arguments = function.args
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return [name for name in names if name not in ("self", "cls")]


def texts(source: str) -> Iterator[str]:
    """Docstrings, and comments with the lines that follow them."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""
    comment, last_line = "", 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            if token.start[0] != last_line + 1:
                yield comment
                comment = ""
            comment += token.string.lstrip("#:") + "\n"
            last_line = token.start[0]
    yield comment


def inverted_sentences(source: str) -> list[str]:
    """Sentences that begin with "Of", which a reader has to turn round."""
    found = [re.findall(r"(?:^|[.!?]\s|\n\n)\s*(Of\s[^.]{,60})", text) for text in texts(source)]
    return [sentence for sentences in found for sentence in sentences]


def test_files_are_short():
    lines = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert len(lines) >= 150
    assert {name: count for name, count in lines.items() if count > MAX_LINES} == {}
    assert median(lines.values()) <= MEDIAN_LINES


def test_functions_are_short():
    lengths = {
        f"{name_of(path)}:{function.lineno} {function.name}": (function.end_lineno or 0) - function.lineno + 1
        for path in SOURCES
        for function in functions(path)
    }
    assert len(lengths) >= 1000
    assert {name: length for name, length in lengths.items() if length > MAX_FUNCTION} == {}


def test_functions_take_few_arguments():
    many: dict[str, set[str]] = {}
    for path in SOURCES:
        for function in functions(path):
            if len(parameters(function)) > MAX_PARAMETERS:
                many.setdefault(name_of(path), set()).add(function.name)
    assert many == SIGNATURES_OF_TRANSFORMERS


def test_a_forward_is_the_figure():
    """The forward of each model class in at most 15 statements, docstrings aside."""
    counts = {}
    for path in sorted((PACKAGE / "models").glob("modeling_*.py")):
        for function in functions(path):
            if function.name == "forward":
                statements = [node for node in ast.walk(function) if isinstance(node, ast.stmt)]
                # The function itself and its docstring are two of them.
                counts[f"{path.name}:{function.lineno}"] = len(statements) - 2
    assert len(counts) == 3
    assert max(counts.values()) <= 15


@pytest.mark.parametrize("folder", ["src", "tests", "benchmarks", "examples"])
def test_sentences_do_not_begin_with_of(folder):
    paths = [path for path in EVERYWHERE if path.relative_to(ROOT).parts[0] == folder]
    assert len(paths) >= {"src": 150, "tests": 100, "benchmarks": 5, "examples": 4}[folder]
    found = {str(path.relative_to(ROOT)): inverted_sentences(path.read_text(encoding="utf-8")) for path in paths}
    assert {name: sentences for name, sentences in found.items() if sentences} == {}


def test_the_guards_see_what_they_should():
    source = '"""Of all, one."""\n\n\ndef f(self, a, /, b, *, c):\n    """One. Of two, b."""\n'
    source += "    # It.\n    # Of three,\n    # c.\n"
    assert inverted_sentences(source) == ["Of all, one", "Of two, b", "Of three,\n c"]
    assert inverted_sentences('"""One of them. Offered."""\n# kind of: Of it\n') == []
    [function] = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    assert parameters(function) == ["a", "b", "c"]
