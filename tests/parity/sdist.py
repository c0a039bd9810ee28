"""The tests in the source distribution of the installed transformers. Nothing of them is copied here.

They are fetched from the package index by pip, into a cache, and imported as the package `transformers_tests`.
"""

import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from types import ModuleType

import transformers

PACKAGE = "transformers_tests"


def fetch_tests(cache: Path) -> Path:
    """The folder `tests` of the source distribution. RuntimeError if there is none, as offline."""
    version = transformers.__version__
    folder = cache / f"transformers-{version}"
    if not folder.is_dir():
        with tempfile.TemporaryDirectory(dir=cache) as temporary:
            archive = _download(version, Path(temporary))
            with tarfile.open(archive) as content:
                content.extractall(temporary, [_ for _ in content if "/tests/" in _.name], filter="data")
            # A second process may have been faster.
            if not folder.is_dir():
                (Path(temporary) / f"transformers-{version}").rename(folder)
    if not (folder / "tests" / "test_modeling_common.py").is_file():
        raise RuntimeError(f"the source distribution of transformers {version} has no tests")
    return folder / "tests"


def _download(version: str, folder: Path) -> Path:
    options = ["--no-binary", "transformers", "--no-deps", "--retries", "0", "--timeout", "10"]
    command = [sys.executable, "-m", "pip", "download", "-q", *options, "--dest", folder, f"transformers=={version}"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"the package index did not give transformers {version} within two minutes") from None
    archives = list(folder.glob("*.tar.gz"))
    if result.returncode or len(archives) != 1:
        reason = (result.stderr.strip().splitlines() or ["pip told nothing"])[-1]
        raise RuntimeError(f"pip cannot download the source distribution of transformers {version}: {reason}")
    return archives[0]


def import_tests(folder: Path) -> None:
    """Make `transformers_tests.test_modeling_common` and its siblings importable."""
    package = ModuleType(PACKAGE)
    package.__path__ = [str(folder)]
    sys.modules[PACKAGE] = package
    # What these files import and the distribution lacks. It is of generation and of the exporters, which ask for files
    # of the repository, and of images on the Hub.
    for name, attribute, value in (
        (f"{PACKAGE}.exporters.test_export", "ExportTesterMixin", type("ExportTesterMixin", (), {})),
        (f"{PACKAGE}.generation.test_utils", "GenerationTesterMixin", type("GenerationTesterMixin", (), {})),
        ("fetch_hub_objects_for_ci", "url_to_local_path", lambda url: url),
    ):
        module = ModuleType(name)
        setattr(module, attribute, value)
        sys.modules[name] = module
        parent, _, own = name.rpartition(".")
        if parent and parent not in sys.modules:
            sys.modules[parent] = ModuleType(parent)
            setattr(sys.modules[parent], own, module)
