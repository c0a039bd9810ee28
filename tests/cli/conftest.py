"""Commands run in an empty folder."""

import pytest
from typer.testing import CliRunner

from maskformer_hf.cli import app


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the command in an empty folder; gives the result with stdout and stderr apart."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])
