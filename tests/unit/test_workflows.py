"""The workflows people copy: actions pinned by commit, tokens that read, no fork on a GPU runner."""

import re
from pathlib import Path

import pytest

WORKFLOWS = sorted((Path(__file__).parents[2] / "docs" / "ci").glob("*.yml"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.name)
def test_a_workflow_is_safe_to_copy(path: Path) -> None:
    text = path.read_text()
    uses = re.findall(r"uses: (\S+)( +# v[\d.]+)?", text)
    assert uses
    for action, version in uses:
        assert re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}", action), f"{action} is not pinned by commit"
        assert version, f"{action}: a comment names the version"
    assert re.search(r"^permissions:\n  contents: read$", text, re.MULTILINE)
    assert "pull_request_target" not in text
    if "pull_request" in text:
        assert "github.event.pull_request.head.repo.full_name == github.repository" in text
