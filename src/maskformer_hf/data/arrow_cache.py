"""The contents of a json about many images, kept in an Arrow file that all processes share."""

import hashlib
import json
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..output_files import whole_file

if TYPE_CHECKING:
    from datasets import Dataset as ArrowDataset
    from pyarrow import Schema

Parsed = tuple["Schema", Iterable[dict[str, Any]], dict[str, Any]]

# Part of a cached file's name. Raise it with every change of what a parser that is given to `arrow_records` makes.
VERSION = 2
METADATA_KEY = b"maskformer_hf"
BATCH = 1000


def arrow_records(source: Path, kind: str, parse: Callable[[Path], Parsed]) -> tuple["ArrowDataset", dict[str, Any]]:
    """The records of a json, and facts about all of them; parsed once, then mapped from the cache of `datasets`.

    A json of a million objects takes minutes to parse, and gigabytes in each process as Python objects. The Arrow file
    made of it opens at once, processes share its pages, and pickling the result passes on its path. It is made anew
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
        try:
            # Several processes may do this at once. The last one replaces an equal file.
            with (
                whole_file(path) as unfinished,
                pyarrow.OSFile(str(unfinished), "wb") as sink,
                pyarrow.ipc.new_stream(sink, schema) as writer,
            ):
                while batch := list(islice(iterator, BATCH)):
                    writer.write_batch(pyarrow.RecordBatch.from_pylist(batch, schema=schema))
        except OSError as error:
            raise ValueError(
                f"the records of {source} cannot be written to {folder}: {error}; set HF_DATASETS_CACHE to a folder "
                "with room"
            ) from error
    with pyarrow.memory_map(str(path)) as file, pyarrow.ipc.open_stream(file) as reader:
        facts = json.loads(reader.schema.metadata[METADATA_KEY])
    return ArrowDataset.from_file(str(path)), facts
