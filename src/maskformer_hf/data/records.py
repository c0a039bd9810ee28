"""What a json says about many images, kept in an Arrow file that every process maps and none copies."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .sample import Problem

if TYPE_CHECKING:
    from datasets import Dataset as ArrowDataset
    from pyarrow import Schema

Parsed = tuple["Schema", Iterable[dict[str, Any]], dict[str, Any]]

# Part of a file's name: to be counted up with every change of what the parsers below `arrow_records` make.
VERSION = 1
METADATA_KEY = b"maskformer_hf"
BATCH = 1000


def arrow_records(source: Path, kind: str, parse: Callable[[Path], Parsed]) -> tuple["ArrowDataset", dict[str, Any]]:
    """The records of a json, and facts about all of them; parsed once, then mapped from the cache of `datasets`.

    A json of a million objects takes minutes to parse, and as Python objects gigabytes in each process. The Arrow file
    made of it opens at once, processes share its pages, and pickling the result passes its path on. It is made anew
    when the json's size or time has changed.

    Args:
        kind: name of what `parse` makes, part of the file's name.
        parse: json -> (schema, records, facts); facts must be writable as json.
    """
    import pyarrow
    from datasets import Dataset as ArrowDataset
    from datasets import config

    status = source.stat()
    identity = f"{VERSION} {kind} {source.resolve()} {status.st_size} {status.st_mtime_ns}"
    folder = Path(config.HF_DATASETS_CACHE) / "maskformer_hf"
    path = folder / f"{kind}-{source.stem}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.arrow"
    if not path.is_file():
        schema, records, facts = parse(source)
        iterator = iter(records)
        schema = schema.with_metadata({METADATA_KEY: json.dumps(facts).encode()})
        # Written under another name: several processes may be at it, and whichever ends last replaces an equal file.
        unfinished = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                with pyarrow.OSFile(str(unfinished), "wb") as sink, pyarrow.ipc.new_stream(sink, schema) as writer:
                    while batch := list(islice(iterator, BATCH)):
                        writer.write_batch(pyarrow.RecordBatch.from_pylist(batch, schema=schema))
                os.replace(unfinished, path)
            finally:
                unfinished.unlink(missing_ok=True)
        except OSError as error:
            raise ValueError(
                f"the records of {source} cannot be written to {folder}: {error}; set HF_DATASETS_CACHE to a folder "
                "with room"
            ) from error
    with pyarrow.memory_map(str(path)) as file, pyarrow.ipc.open_stream(file) as reader:
        facts = json.loads(reader.schema.metadata[METADATA_KEY])
    return ArrowDataset.from_file(str(path)), facts


class ProblemCounter:
    """Collects `Problem`s: all are counted, the first ten of a kind kept."""

    def __init__(self) -> None:
        self.examples: dict[str, list[str]] = {}
        self.counts: dict[str, int] = {}

    def add(self, what: str, where: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1
        if self.counts[what] <= 10:
            self.examples.setdefault(what, []).append(where)

    def problems(self) -> list[Problem]:
        return [Problem(what, count, self.examples[what]) for what, count in self.counts.items()]


def read_json(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    """Parses a json whose top level has these keys. Raises ValueError naming the file and what is missing."""
    try:
        with path.open(encoding="utf-8") as file:
            content = json.load(file)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no valid json: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__} at its top; expected keys {list(keys)}")
    missing = [key for key in keys if key not in content]
    if missing:
        raise ValueError(f"{path} has no {missing}; its keys are {sorted(content)}")
    return content
