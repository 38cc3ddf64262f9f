"""What a runner says of its git checkout, and that finding it out runs no program that the checkout names."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ttasks.log import checkout


class Checkout:
    """A checkout with one commit of `a.bin` and `b.txt`, and a canary that each planted program would touch."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "checkout"
        self.canary = folder / "canary"
        self.program = folder / "planted.sh"
        self.program.write_text(f'#!/bin/sh\necho "$0 $*" >> {self.canary}\ncat\n', "utf-8")
        self.program.chmod(0o755)
        self.root.mkdir()
        self.git("init", "-q", "-b", "trunk")
        self.write("a.bin", "a\n")
        self.write("b.txt", "b\n")
        self.commit()

    def git(self, *arguments: str) -> str:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "protocol.file.allow=always", "-C"]
        environment = {**os.environ, "HOME": str(self.root.parent)}
        done = subprocess.run(
            [*command, str(self.root), *arguments], check=True, capture_output=True, text=True, env=environment
        )
        return done.stdout.strip()

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")

    def commit(self) -> None:
        self.git("add", "-A")
        self.git("commit", "-q", "-m", "more")

    def touch(self, name: str) -> None:
        """Let a file look changed to git, which then reads it, while its content stays."""
        os.utime(self.root / name, (1, 1))

    def state(self) -> tuple[str | None, str | None, bool | None]:
        found = checkout.describe_git(self.root)
        assert not self.canary.exists(), self.canary.read_text("utf-8")
        return found.git_commit, found.git_branch, found.git_dirty

    def is_dirty(self) -> bool | None:
        commit, branch, dirty = self.state()
        assert (commit, branch) == (self.git("rev-parse", "HEAD"), "trunk")
        return dirty


@pytest.fixture
def made(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def filter_named(name: str, made: Checkout) -> None:
    made.write(".gitattributes", f"*.bin filter={name}\n")
    made.commit()
    for key in ("clean", "smudge", "process"):
        made.git("config", f"filter.{name}.{key}", str(made.program))
    made.git("config", f"filter.{name}.required", "true")


def plant_filter(made: Checkout) -> None:
    filter_named("evil", made)


def plant_filter_with_an_odd_name(made: Checkout) -> None:
    filter_named("evil.and-Odd", made)


def plant_filter_in_an_included_file(made: Checkout) -> None:
    filter_named("evil", made)
    (made.root / ".git" / "config").rename(made.root / ".git" / "more")
    made.git("init", "-q")
    made.git("config", "includeIf.gitdir:**.path", "more")


def plant_filter_in_a_worktrees_configuration(made: Checkout) -> None:
    filter_named("evil", made)
    (made.root / ".git" / "config").rename(made.root / ".git" / "config.worktree")
    made.git("init", "-q")
    made.git("config", "extensions.worktreeConfig", "true")


def plant_filter_by_its_repositorys_attributes(made: Checkout) -> None:
    (made.root / ".git" / "info" / "attributes").write_text("*.bin filter=evil\n", "utf-8")
    made.git("config", "filter.evil.clean", str(made.program))


def plant_monitor(made: Checkout) -> None:
    made.git("config", "core.fsmonitor", str(made.program))


def plant_hooks(made: Checkout) -> None:
    hooks = made.root / ".git" / "own-hooks"
    hooks.mkdir()
    for name in ("post-index-change", "reference-transaction", "post-checkout", "fsmonitor-watchman"):
        (hooks / name).write_bytes(made.program.read_bytes())
        (hooks / name).chmod(0o755)
    made.git("config", "core.hooksPath", str(hooks))


def plant_viewers(made: Checkout) -> None:
    made.write(".gitattributes", "*.bin diff=evil\n")
    made.commit()
    for key in (
        "diff.external",
        "diff.evil.textconv",
        "diff.evil.command",
        "core.pager",
        "pager.status",
        "core.editor",
    ):
        made.git("config", key, str(made.program))


def plant_in_a_submodule(made: Checkout) -> None:
    part = Checkout(made.root.parent / "parts")
    made.git("submodule", "--quiet", "add", str(part.root), "part")
    made.commit()
    inside = ["-C", str(made.root / "part")]
    (made.root / ".git" / "modules" / "part" / "info" / "attributes").write_text("*.bin filter=evil\n", "utf-8")
    made.git(*inside, "config", "filter.evil.clean", str(made.program))
    made.git(*inside, "config", "core.fsmonitor", str(made.program))
    made.touch("part/a.bin")


PLANTED = [
    plant_filter,
    plant_filter_with_an_odd_name,
    plant_filter_in_an_included_file,
    plant_filter_in_a_worktrees_configuration,
    plant_filter_by_its_repositorys_attributes,
    plant_monitor,
    plant_hooks,
    plant_viewers,
    plant_in_a_submodule,
]


@pytest.fixture(autouse=True)
def _parts(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()


@pytest.mark.parametrize("plant", PLANTED)
def test_no_program_that_a_checkout_names_is_run(made: Checkout, plant: Callable[[Checkout], None]) -> None:
    plant(made)
    made.touch("a.bin")
    assert made.is_dirty() is False

    made.write("new.txt", "new\n")
    assert made.is_dirty() is True


def test_what_a_partial_clone_lacks_is_not_fetched_by_a_program_of_its_own(made: Checkout) -> None:
    tree = made.git("rev-parse", "HEAD^{tree}")
    (made.root / ".git" / "objects" / tree[:2] / tree[2:]).unlink()
    made.git("config", "core.repositoryFormatVersion", "1")
    made.git("config", "extensions.partialClone", "origin")
    made.git("config", "remote.origin.promisor", "true")
    made.git("config", "remote.origin.uploadpack", str(made.program))
    made.git("config", "remote.origin.url", str(made.root))
    made.git("config", "protocol.allow", "always")

    assert made.is_dirty() is None


def test_a_change_that_only_a_filter_could_tell_from_none_is_unknown(made: Checkout) -> None:
    plant_filter(made)
    made.write("a.bin", "changed\n")
    assert made.is_dirty() is None

    made.write("b.txt", "changed\n")  # no filter has a say in it
    assert made.is_dirty() is True


def test_a_filter_whose_name_can_not_be_given_to_git_leaves_it_unknown(made: Checkout) -> None:
    filter_named("e=vil", made)
    made.touch("a.bin")

    assert made.is_dirty() is None


def test_a_submodule_with_another_commit_is_a_change(made: Checkout) -> None:
    plant_in_a_submodule(made)
    made.git("-C", str(made.root / "part"), "config", "--unset", "core.fsmonitor")
    made.git("-C", str(made.root / "part"), "commit", "-q", "--allow-empty", "-m", "other")
    made.canary.unlink()  # that commit looked into the submodule's own folder

    assert made.is_dirty() is True


def test_the_checkout_is_described_also_where_variables_of_git_lead_elsewhere(
    made: Checkout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Checkout(tmp_path / "parts")
    other.write("b.txt", "changed\n")
    for name, value in {"GIT_DIR": ".git", "GIT_WORK_TREE": "", "GIT_INDEX_FILE": ".git/index"}.items():
        monkeypatch.setenv(name, str(other.root / value))

    monkeypatch.setenv("GIT_EXTERNAL_DIFF", str(made.program))
    found = checkout.describe_git(made.root)

    monkeypatch.undo()
    assert (found.git_commit, found.git_dirty) == (made.git("rev-parse", "HEAD"), False)


def test_of_a_broken_checkout_inside_another_nothing_is_told(made: Checkout) -> None:
    (made.root / "inner" / ".git").mkdir(parents=True)

    found = checkout.describe_git(made.root / "inner")

    assert (found.git_commit, found.git_branch, found.git_dirty) == (None, None, None)


def test_a_git_that_takes_too_long_is_ended(made: Checkout, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(made.root / ".git" / "info" / "attributes")  # git waits for a writer
    monkeypatch.setattr(checkout, "GIT_WAIT_S", 1.0)

    assert made.is_dirty() is None


def test_a_git_that_lies_in_the_folder_itself_is_not_run(made: Checkout, monkeypatch: pytest.MonkeyPatch) -> None:
    made.program.rename(made.root / "git")
    monkeypatch.chdir(made.root)
    monkeypatch.setenv("PATH", f".:{os.environ['PATH']}")

    assert made.state() == (None, None, None)
