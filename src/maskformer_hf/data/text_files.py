"""The one door for text, lists of lines, JSON and YAML that others have written."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

UTF_16 = (b"\xff\xfe", b"\xfe\xff")


def read_text(path: str | Path) -> str:
    """The text of a file in UTF-8, with or without a byte-order mark. All ends of lines become "\\n".

    Raises ValueError, with the line and the remedy, for other encodings.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    refuse_utf_16(path, content[:4])
    try:
        # Files that were put together have marks within, too.
        text = content.decode("utf-8").replace("\ufeff", "")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}, line {line} is not UTF-8 (byte 0x{content[error.start]:02x}); save the file as UTF-8, for "
            "example with: iconv -f WINDOWS-1252 -t UTF-8"
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def refuse_utf_16(path: str | Path, start: bytes) -> None:
    """Raises ValueError if the first four bytes of a file are those of text in UTF-16 or UTF-32."""
    if start[:2] in UTF_16 or b"\0" in start:
        raise ValueError(f"{path}, line 1 is UTF-16 or UTF-32; save the file as UTF-8: iconv -f UTF-16 -t UTF-8")


def numbered_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """The lines of a text that are not empty, without the space around them, and their numbers from 1."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            yield number, line.strip()


def read_lines(path: str | Path) -> list[str]:
    """The lines of a text that are not empty, without the space around them."""
    return [line for _, line in numbered_lines(path)]


def read_json(path: str | Path) -> Any:
    """Parses a json. Raises ValueError that names the file."""
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no valid json: {error}") from error


def read_yaml(path: str | Path) -> Any:
    """Parses a YAML file. Raises ValueError that names the file."""
    import yaml

    text = read_text(path)
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no valid YAML: {' '.join(str(error).split())}") from error
