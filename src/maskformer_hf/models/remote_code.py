"""Saved folders carry the code of their classes, so that they load where this package is not installed.

With `trust_remote_code=True` transformers imports the files that `auto_map`, in config.json and
preprocessor_config.json, names in the same folder. `save_pretrained` writes both, so it makes no difference how a
folder reaches the Hub or another machine: by `push_to_hub`, `Trainer.push_to_hub`, `hf upload` or a copy. Where the
package is imported its own classes are taken and not those of the folder, and no flag is needed.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import get_relative_import_files
from transformers.image_processing_base import ImageProcessingMixin
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME, PushToHubMixin, logging

from .auto_classes import CLASS_NAMES, MODELS, PROCESSORS

logger: Any = logging.get_logger(__name__)

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
# Where this code lies, with its siblings: the package, or the folder of transformers' cache that it was loaded from.
CODE = Path(__file__).parent
# Whether it is the latter.
IS_REMOTE = __name__.startswith(f"{TRANSFORMERS_DYNAMIC_MODULE_NAME}.")
# "0" saves without code wherever `save_pretrained` is not told; for callers that cannot pass `with_code`, as `Trainer`.
SWITCH = "MASKFORMER_HF_SAVE_CODE"

# Folders whose subfolders are checkpoints that `from_pretrained` finds by their name.
_checkpoint_folders: list[Path] = []
# Whether the save that is going on writes code; None while there is none.
_saving_with_code: ContextVar[bool | None] = ContextVar("saving_with_code", default=None)


class CheckpointMixin(PushToHubMixin):
    """What a configuration, a model and a processor have in common: how their folder is found, and completed at save.

    It stands in front of transformers' base class. When transformers has written its files, `complete_folder` may
    change them; the code comes last. Both happen before anything is uploaded.
    """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; the names of the checkpoints that come with the package are known as well."""
        return super().from_pretrained(_named_folder(pretrained_model_name_or_path), *args, **kwargs)  # pyrefly: ignore

    def save_pretrained(self, save_directory: Any, *args: Any, with_code: bool | None = None, **kwargs: Any) -> Any:
        """As in transformers, and writes the code of the class beside, with the `auto_map` that names it.

        Args:
            with_code: Whether to do so. If None, yes, unless the environment variable MASKFORMER_HF_SAVE_CODE is "0".
        """
        if _saving_with_code.get() is not None:
            # A model saves its configuration by this method too, and completes the folder itself.
            return super().save_pretrained(save_directory, *args, **kwargs)
        with _save(os.environ.get(SWITCH) != "0" if with_code is None else with_code):
            result: Any = super().save_pretrained(save_directory, *args, **kwargs)
            # transformers' models know of several processes, of which one writes.
            writes = getattr(self, "should_save_on_this_rank", bool)
            if writes(kwargs.get("is_main_process", True)):
                self._finish(save_directory)
        return result

    @classmethod
    def register_for_auto_class(cls, *args: Any, **kwargs: Any):
        """Nothing to do for our classes: what they save names its code. Subclasses from elsewhere are registered."""
        if cls.__name__ not in CLASS_NAMES:
            super().register_for_auto_class(*args, **kwargs)  # pyrefly: ignore[missing-attribute]

    def complete_folder(self, folder: Path):
        """Change what transformers has written into `folder`, if a class needs to. May run twice in one save."""

    def parts_without_code(self) -> Sequence[str]:
        """What was registered from outside and is used: its code does not travel."""
        return ()

    def _finish(self, folder: str | Path) -> set[str]:
        self.complete_folder(Path(folder))
        # FSDP makes a subclass of its own. Any other subclass is not what `auto_map` would load.
        if type(self).__name__.removeprefix("FSDP") not in CLASS_NAMES:
            return set()
        name = PROCESSOR if isinstance(self, ImageProcessingMixin) else CONFIG
        if _saving_with_code.get():
            for part in self.parts_without_code():
                logger.warning_once(
                    f"The saved folder carries the code of this package, but not that of {part}, which was registered "
                    "from outside: the folder loads only where that has been registered."
                )
            return _add_code(Path(folder), name)
        _set_auto_map(Path(folder) / name, {})
        return set()

    def _upload_modified_files(
        self, working_dir: Any, repo_id: str, files_timestamps: dict[str, float], *args: Any, **kwargs: Any
    ) -> Any:
        if _saving_with_code.get() is not None:
            # `save_pretrained(push_to_hub=True)` uploads what has changed, and the code may have been there before.
            code = self._finish(working_dir)
            files_timestamps = {name: time for name, time in files_timestamps.items() if name not in code}
        return super()._upload_modified_files(working_dir, repo_id, files_timestamps, *args, **kwargs)


def register_checkpoints(folder: Path):
    """Let `from_pretrained` find the subfolders of `folder` by their name."""
    if folder not in _checkpoint_folders:
        _checkpoint_folders.append(folder)


def add_code(folder: str | Path):
    """Give config.json and preprocessor_config.json in `folder`, if they are ours, their `auto_map` and its code."""
    for name in (CONFIG, PROCESSOR):
        _add_code(Path(folder), name)


def _add_code(folder: Path, name: str) -> set[str]:
    """The same for one of the two files. Returns the names of the files of code.

    A class that itself came with its code lies in transformers' cache, which holds only the files that have been
    needed: what is not there is not named either.
    """
    auto_maps = {file: _auto_map_of(_read_json(folder / file)) for file in (CONFIG, PROCESSOR)}
    code: dict[str, Path] = {}
    for file, auto_map in auto_maps.items():
        # The other one's code is renewed as well: files of two versions would not fit each other.
        if file == name or "auto_map" in _read_json(folder / file):
            for entry in {_file_of(reference) for reference in auto_map.values()}:
                code |= {path.name: path for path in (entry, *map(Path, get_relative_import_files(entry)))}
    # `auto_map` comes last, so that it never names a file that is not there yet.
    for path in code.values():
        _write(folder / path.name, path.read_bytes())
    if auto_maps[name]:
        _set_auto_map(folder / name, auto_maps[name])
    return set(code)


def _set_auto_map(path: Path, auto_map: dict[str, str]):
    content = _read_json(path)
    if content.get("auto_map", {}) != auto_map:
        content = {key: value for key, value in content.items() if key != "auto_map"}
        content |= {"auto_map": auto_map} if auto_map else {}
        _write(path, (json.dumps(content, indent=2) + "\n").encode())


def _auto_map_of(content: dict[str, Any]) -> dict[str, str]:
    """What `auto_map` should say in a config.json or preprocessor_config.json; nothing if it is not ours."""
    if "image_processor_type" in content:
        processors = {auto_map["AutoImageProcessor"].partition(".")[2]: auto_map for auto_map in PROCESSORS.values()}
        auto_map = processors.get(content["image_processor_type"], {})
    else:
        auto_map = MODELS.get(content.get("model_type", ""), {})
    return {auto_class: reference for auto_class, reference in auto_map.items() if _file_of(reference).is_file()}


def _file_of(reference: str) -> Path:
    return CODE / f"{reference.partition('.')[0]}.py"


def _read_json(path: Path) -> dict[str, Any]:
    """Empty if the file is not there, or is somebody else's that happens to have the name."""
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _write(path: Path, content: bytes):
    """Write beside and rename, so that nobody ever reads half a file; do nothing if the file is as it should be."""
    if path.is_file() and path.read_bytes() == content:
        return
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_bytes(content)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _named_folder(name: Any) -> Any:
    """The folder of a checkpoint that comes with the package; a folder of one's own with that name goes first."""
    if isinstance(name, str) and name.isidentifier() and not any(Path(name).glob("*config.json")):
        for folder in _checkpoint_folders:
            if (folder / name / CONFIG).is_file():
                return str(folder / name)
    return name


@contextmanager
def _save(with_code: bool) -> Iterator[None]:
    token = _saving_with_code.set(with_code)
    try:
        yield
    finally:
        _saving_with_code.reset(token)
