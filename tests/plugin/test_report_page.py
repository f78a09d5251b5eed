"""The page of a real run, and of a second one that knows the first."""

import re


def test_a_run_writes_a_page_and_the_next_one_shows_its_history(project):
    project.write()
    result = project.run()
    assert result.ret == 0, result.stdout.str()
    result.stdout.fnmatch_lines(["Report: reports/latest/index.html,*"])
    page = project.path / "reports/latest/index.html"
    first = page.read_text(encoding="utf-8")
    assert "Every limit held" in first
    assert 'href="./logs/one.log"' in first
    assert 'class="spark"' not in first
    assert project.run().ret == 0
    labels = re.findall(r'class="spark"[^>]*aria-label="([^"]*)"', page.read_text(encoding="utf-8"))
    assert labels
    assert all(label.startswith("1 earlier run since") for label in labels)


def test_a_history_file_that_cannot_be_read_is_named_on_the_page(project):
    project.write()
    (project.path / ".benchmarks").mkdir()
    (project.path / ".benchmarks" / "0001_cut.json").write_text("{")
    assert project.run().ret == 0
    assert "0001_cut.json was skipped" in (project.path / "reports/latest/index.html").read_text(encoding="utf-8")
