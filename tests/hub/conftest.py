"""A Hub on the loopback address, and processes that believe it is the Hub."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub.loopback import TOKEN, LoopbackHub

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def hub():
    server = LoopbackHub()
    yield server
    server.close()


@pytest.fixture(scope="session")
def run_script(hub):
    """Run a script of this folder in a process of its own, for `huggingface_hub` reads its address when imported.

    Gives what the script wrote to the JSON file that is its first argument.
    """

    def run(name: str, folder: Path, *arguments: object) -> dict:
        folder.mkdir(parents=True, exist_ok=True)
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        environment |= {
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(folder / "home"),  # an empty cache
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        result = subprocess.run(
            [sys.executable, str(HERE / name), str(folder / "result.json"), *map(str, arguments)],
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert result.returncode == 0, result.stderr
        return json.loads((folder / "result.json").read_text())

    return run
