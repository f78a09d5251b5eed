"""Where history can be moved to and from: a folder, a branch of a git repository, anything fsspec can open.

A remote holds each run once, in a file named after its time and its content, so that two writers can never take each
other's place, and pushing again changes nothing.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from pytest_vllmperf.domain.report import redacted
from pytest_vllmperf.errors import HistoryError

__all__ = ["Remote", "open_remote"]

_NAME = re.compile(r"[A-Za-z0-9_.-]+/\d{8}T\d{6}Z_[0-9a-f]{16}_[^/]*\.json")
"""``<hardware>/<UTC time>_<start of the content's SHA-256>_<name>.json``: sorted by name is sorted by time."""
_TRIES = 5


class Remote(Protocol):
    """A place for runs."""

    def names(self) -> frozenset[str]:
        """Every run there is."""

    def read(self, name: str) -> bytes:
        """One run's content."""

    def add(self, files: Mapping[str, bytes]) -> None:
        """Put these runs there; what is there already stays."""


@contextmanager
def open_remote(url: str, *, directory: Path) -> Iterator[Remote]:
    """For ``with``: the remote that ``url`` names; relative paths and git's own remotes are those of ``directory``.

    ``git+<repository>#<branch>`` is a branch of a git repository (a URL, a path, or the name of a remote such as
    ``origin``); ``<protocol>://…`` is whatever fsspec can open; all else is a folder.

    Raises:
        HistoryError: It cannot be opened.
    """
    if url.startswith("git+"):
        repository, _, branch = url.removeprefix("git+").rpartition("#")
        if not repository or not branch:
            raise HistoryError(
                f"{url}: name repository and branch, as in git+origin#vllm-history or "
                "git+https://host/group/project.git#vllm-history"
            )
        with TemporaryDirectory(prefix="vllmperf-history-") as scratch:
            yield _GitBranch(repository, branch, directory, Path(scratch))
    elif re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", url):
        yield _Fsspec(url)
    else:
        yield _Folder(directory / url)


class _Folder:
    """A folder: another disk, a share, a CI cache."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> frozenset[str]:
        found = (path.relative_to(self.path).as_posix() for path in self.path.glob("*/*.json"))
        return frozenset(name for name in found if _NAME.fullmatch(name))

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def add(self, files: Mapping[str, bytes]) -> None:
        for name, content in files.items():
            path = self.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = path.with_name(f".{path.name}.{os.getpid()}")
            try:
                draft.write_bytes(content)
                draft.replace(path)
            finally:
                draft.unlink(missing_ok=True)


class _Fsspec:
    """Anything fsspec can open, such as ``s3://bucket/prefix`` (with s3fs installed) or ``gs://…`` (gcsfs)."""

    def __init__(self, url: str) -> None:
        try:
            import fsspec
        except ImportError as error:
            raise HistoryError(f"{url}: fsspec is not installed; pip install 'pytest-vllmperf[remote]'") from error
        try:
            self.system, self.root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise HistoryError(f"{url}: {error}") from error
        self.url = url

    def names(self) -> frozenset[str]:
        self.system.invalidate_cache()  # listings are kept for a process's life: others may have pushed since
        found = self._do(lambda: self.system.glob(f"{self.root.rstrip('/')}/*/*.json"))
        relative = ("/".join(PurePosixPath(path).parts[-2:]) for path in found)
        return frozenset(name for name in relative if _NAME.fullmatch(name))

    def read(self, name: str) -> bytes:
        content: bytes = self._do(lambda: self.system.cat_file(self._path(name)))
        return content

    def add(self, files: Mapping[str, bytes]) -> None:
        for name, content in files.items():
            self._do(lambda name=name, content=content: self._write(self._path(name), content))

    def _write(self, path: str, content: bytes) -> None:
        """Write one file. Folders are made where there are such, buckets never: a name mistyped would become one."""
        try:
            self.system.pipe_file(path, content)
        except FileNotFoundError:
            if not self.system.exists(PurePosixPath(path).parts[0]):
                raise
            self.system.makedirs(path.rpartition("/")[0], exist_ok=True)
            self.system.pipe_file(path, content)

    def _path(self, name: str) -> str:
        return f"{self.root.rstrip('/')}/{name}"

    def _do(self, action: Any) -> Any:
        """Do it; each library has errors of its own."""
        try:
            return action()
        except Exception as error:
            raise HistoryError(f"{self.url}: {type(error).__name__}: {error}") from error


class _GitBranch:
    """A branch that holds nothing but runs, written without touching any work tree.

    In a repository its objects and credentials are used and kept, so that the next time only news travel; elsewhere
    a bare one is made for the moment, in ``scratch``.
    """

    def __init__(self, repository: str, branch: str, directory: Path, scratch: Path) -> None:
        self.repository, self.branch = repository, branch
        self.directory, self.scratch = directory, scratch
        self.reference = f"refs/vllmperf/{branch}"
        if self._run("rev-parse", "--git-dir", check=False) is None:
            local = directory / repository
            self.repository = str(local.resolve()) if local.exists() else repository
            self.directory = scratch
            self._git("init", "--quiet", "--bare")

    def names(self) -> frozenset[str]:
        self._fetch()
        return self._listed()

    def read(self, name: str) -> bytes:
        content = self._run("cat-file", "blob", f"{self.reference}:{name}")
        assert content is not None
        return content

    def add(self, files: Mapping[str, bytes]) -> None:
        """As :class:`Remote`; when somebody else pushes at the same time, on top of theirs."""
        for _ in range(_TRIES):
            new = {name: content for name, content in files.items() if name not in self._listed()}
            if not new:
                return
            commit = self._commit(new)
            target = f"{commit}:refs/heads/{self.branch}"
            if self._run("push", "--quiet", self.repository, target, check=False) is not None:
                self._git("update-ref", self.reference, commit)
                return
            before = self._tip()
            self._fetch()
            if self._tip() == before:  # nobody was faster: it is refused
                self._git("push", "--quiet", self.repository, target)
        raise HistoryError(f"{self.repository}#{self.branch}: others pushed {_TRIES} times meanwhile; try again")

    def _fetch(self) -> None:
        """Bring our reference to where the branch is; a branch that does not exist yet is an empty remote."""
        told = self._git("ls-remote", "--heads", self.repository, f"refs/heads/{self.branch}")
        if not told:
            self._run("update-ref", "-d", self.reference, check=False)
            return
        shallow = self.directory == self.scratch or self._git("rev-parse", "--is-shallow-repository") == "true"
        depth = ("--depth=1",) if shallow else ()
        spec = f"+refs/heads/{self.branch}:{self.reference}"
        self._git("fetch", "--quiet", "--no-tags", *depth, self.repository, spec)

    def _tip(self) -> str | None:
        found = self._run("rev-parse", "--verify", "--quiet", self.reference, check=False)
        return None if found is None else found.decode().strip()

    def _listed(self) -> frozenset[str]:
        if self._tip() is None:
            return frozenset()
        found = self._git("ls-tree", "-r", "-z", "--name-only", self.reference).split("\0")
        return frozenset(name for name in found if _NAME.fullmatch(name))

    def _commit(self, files: Mapping[str, bytes]) -> str:
        tip = self._tip()
        env = {"GIT_INDEX_FILE": str(self.scratch / "vllmperf-index")}
        self._git("read-tree", *((self.reference,) if tip else ("--empty",)), env=env)
        for name, content in files.items():
            blob = self._git("hash-object", "-w", "--stdin", given=content)
            self._git("update-index", "--add", "--cacheinfo", f"100644,{blob},{name}", env=env)
        tree = self._git("write-tree", env=env)
        message = f"Add {len(files)} run{'s' if len(files) > 1 else ''}"
        author = {}
        if self._run("var", "GIT_COMMITTER_IDENT", check=False) is None:  # a CI runner has no name
            who = ("pytest-vllmperf", "pytest-vllmperf@localhost")
            author = dict(zip(("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL"), who, strict=True))
            author |= dict(zip(("GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL"), who, strict=True))
        return self._git("commit-tree", tree, *(("-p", tip) if tip else ()), "-m", message, env=author)

    def _git(self, *arguments: str, given: bytes | None = None, env: Mapping[str, str] | None = None) -> str:
        said = self._run(*arguments, given=given, env=env)
        assert said is not None
        return said.decode().strip()

    def _run(
        self, *arguments: str, given: bytes | None = None, env: Mapping[str, str] | None = None, check: bool = True
    ) -> bytes | None:
        """What git says; without ``check`` None when it refuses.

        Raises:
            HistoryError: There is no git, or it refuses.
        """
        try:
            done = subprocess.run(
                ("git", "-C", str(self.directory), *arguments),  # noqa: S607 - the git on PATH is the one meant
                input=given,
                env={**os.environ, "GIT_TERMINAL_PROMPT": "0", **(env or {})},
                stdin=None if given is not None else subprocess.DEVNULL,
                capture_output=True,
                check=False,
            )
        except OSError as error:
            raise HistoryError(f"git cannot be run: {error}") from error
        if done.returncode == 0:
            return done.stdout
        if not check:
            return None
        reason = done.stderr.decode(errors="replace").strip() or f"exit code {done.returncode}"
        told = f"git {arguments[0]} of {self.repository}#{self.branch}: {reason}"
        raise HistoryError(redacted(told, env={}, command=()))
