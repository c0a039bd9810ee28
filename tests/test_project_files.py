"""Files about the project rather than of the program: they agree with each other and with what is there."""

import re
import subprocess
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def checks_of_ci() -> list[str]:
    """The commands of .ci/run besides the tests, with `bin` for the folder of the environment."""
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    return [
        line.replace('"', "").replace("$bin", "bin") for line in re.findall(r'^run ("\$bin/.*)$', script, re.MULTILINE)
    ]


def test_hooks_call_what_ci_calls():
    content = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    [repository] = content["repos"]
    assert repository["repo"] == "local"
    commands = []
    for hook in repository["hooks"]:
        # What pre-commit asks of a local hook, and no key that it does not know.
        assert {"id", "name", "entry", "language"} <= hook.keys()
        assert hook.keys() <= {"id", "name", "entry", "language", "types_or", "pass_filenames"}
        assert hook["pass_filenames"] is False
        command = re.fullmatch(r"bash -c '([^']*)'", hook["entry"])
        assert command, hook["entry"]
        commands.append(command[1].replace("${VENV:-.venv}/bin", "bin"))
    assert commands == checks_of_ci()
    assert len(commands) == 3


def test_the_hosted_workflow_calls_ci_on_the_oldest_python_and_a_newer():
    content = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    [job] = content["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    oldest, newest = job["strategy"]["matrix"]["python"]
    assert f">={oldest}" == PROJECT["requires-python"]
    assert tuple(map(int, newest.split("."))) > tuple(map(int, oldest.split(".")))


def test_the_citation_is_of_this_version():
    content = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert content["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= content.keys()
    assert content["version"] == PROJECT["version"]
    assert content["license"] == PROJECT["license"]
    for reference in content["references"]:
        assert {"type", "title", "authors"} <= reference.keys()


def test_the_changelog_has_this_version_and_what_comes_after():
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert any(heading.split()[0] == PROJECT["version"] for heading in headings)


def test_what_the_pages_name_is_there():
    for page, least in (("CONTRIBUTING.md", 12), ("CHANGELOG.md", 1)):
        text = (ROOT / page).read_text(encoding="utf-8")
        paths = re.findall(r"\]\((?!https?:|#)([^)#]+)\)", text)
        paths += re.findall(r"`((?:src|tests|examples|recipes|benchmarks|docs)/[\w./-]*)`", text)
        assert len(paths) >= least
        for path in paths:
            assert (ROOT / path).exists(), f"{page}: {path}"
    targets = re.findall(r"\bmake (\w+)", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    assert {"quick", "test", "lint", "types", "format"} <= set(targets)
    for target in targets:
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)
