import logging
import os
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from detect_support import SIMPLE, activation, decoding, transcript

from nae_monitor.detect.hot_reload import LiveRules
from nae_monitor.detect.packs import RuleSet
from nae_monitor.errors import ConfigurationError, RuleError
from nae_monitor.health import Health

ROW = activation(), decoding("they seek a secret"), transcript()


def live(directory: Path, **more: object) -> tuple[LiveRules, Health]:
    (directory / "rule.yaml").write_text(SIMPLE)
    health = Health()
    return LiveRules([directory], None, health, **more), health  # type: ignore[arg-type]


def test_a_changed_file_is_taken_at_the_next_poll(tmp_path: Path) -> None:
    rules, health = live(tmp_path)
    assert rules.judge(*ROW) == ()
    assert not rules.poll()
    (tmp_path / "rule.yaml").write_text(SIMPLE.replace("[hide]", "[seek]"))
    assert rules.poll()
    assert [finding.rule_name for finding in rules.judge(*ROW)] == ["a_rule"]
    assert health.counters()["rules.reloaded"] == 1
    assert not rules.poll()


def test_files_that_do_not_load_leave_the_last_good_set(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rules, health = live(tmp_path)
    before = rules.rules
    (tmp_path / "rule.yaml").write_text(SIMPLE.replace("[hide]", "[seek]") + "tset: hush\n")
    with caplog.at_level(logging.WARNING, "nae_monitor"):
        assert not rules.poll()
    assert rules.rules is before
    assert "rule.yaml:8:1: unknown key 'tset'" in rules.problems
    assert health.counters()["rules.reload_failed"] == 1
    assert "1 problems; the last good set stays" in caplog.text
    assert "tset" not in caplog.text
    assert not rules.poll()
    assert health.counters()["rules.reload_failed"] == 1
    (tmp_path / "rule.yaml").write_text(SIMPLE.replace("[hide]", "[seek]"))
    assert rules.poll()
    assert rules.problems == ""


def test_new_and_removed_files_are_seen_and_an_empty_directory_changes_nothing(
    tmp_path: Path,
) -> None:
    rules, _ = live(tmp_path)
    second = SIMPLE.replace("6b1f0c1e", "7b1f0c1e").replace("name: a_rule", "name: b_rule")
    (tmp_path / "more.yaml").write_text(second)
    assert rules.poll()
    assert len(rules.rules) == 2
    (tmp_path / "more.yaml").unlink()
    assert rules.poll()
    (tmp_path / "rule.yaml").unlink()
    assert not rules.poll()
    assert len(rules.rules) == 1


def test_a_set_that_is_not_accepted_is_not_taken(tmp_path: Path) -> None:
    def accept(rules: RuleSet) -> None:
        if rules.rules[0].title == "Other":
            raise ConfigurationError("not this one")

    rules, health = live(tmp_path, accept=accept)
    (tmp_path / "rule.yaml").write_text(SIMPLE.replace("A rule", "Other"))
    assert not rules.poll()
    assert rules.problems == "not this one"
    assert health.counters()["rules.reload_failed"] == 1


def test_the_thread_takes_changes_and_ends(tmp_path: Path) -> None:
    rules, health = live(tmp_path)
    rules.start(poll_s=0.01)
    (tmp_path / "rule.yaml").write_text(SIMPLE.replace("[hide]", "[seek]"))
    wait = threading.Event()
    while not health.counters().get("rules.reloaded"):
        wait.wait(0.01)
    rules.stop()
    assert len(rules.judge(*ROW)) == 1


def test_rules_that_do_not_load_stop_the_start(tmp_path: Path) -> None:
    with pytest.raises(RuleError):
        LiveRules([tmp_path])


def put_directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


def put_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def put_loop(file: Path) -> None:
    file.unlink()
    file.symlink_to(file)


def take_directory(file: Path) -> None:
    file.unlink()
    file.parent.rmdir()


def put(content: bytes) -> Callable[[Path], None]:
    def write(file: Path) -> None:
        file.write_bytes(content)

    return write


BOMB = b"a0: &a0 [x]\n" + b"".join(
    b"a%d: &a%d [%s]\n" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 9)) for n in range(1, 30)
)
HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "directory": (put_directory, "rule.yaml: is no regular file"),
    "pipe": (put_pipe, "rule.yaml: is no regular file"),
    "loop": (put_loop, "rule.yaml: is no regular file"),
    "gone": (take_directory, "no such rule file or directory"),
    "ten megabytes": (put(b"#" * 10_000_000), "rule.yaml: larger than"),
    "bomb": (put(BOMB), "rule.yaml:2:10: YAML aliases are not allowed"),
    "values": (put(b"[" + b"1," * 150_000 + b"1]"), "rule.yaml:1:200000: holds more than"),
    "digits": (put(b"a: 1" + b":1" * 900_000), "rule.yaml:1:4: '1:1:1"),
    "utf-16": (put(SIMPLE.encode("utf-16")), "rule.yaml:1:1: is not UTF-8"),
    "zeros": (put(SIMPLE.encode() + b"\0" * 9_000), "rule.yaml:8:1: is not valid YAML"),
    "depth": (put(b"[" * 100_000), "rule.yaml:1:33: nested too deeply"),
    "emptiness": (put(b""), "rule.yaml: holds no rule"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_whatever_takes_a_files_place_the_last_good_set_judges_on_and_it_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    directory = tmp_path / "rules"
    directory.mkdir()
    rules, health = live(directory)
    before = rules.rules
    replace, message = HOSTILE[kind]
    replace(directory / "rule.yaml")
    with caplog.at_level(logging.WARNING, "nae_monitor"):
        assert not rules.poll()
    assert rules.rules is before
    assert message in rules.problems
    assert health.counters() == {"rules.reload_failed": 1}
    assert "the last good set stays" in caplog.text
    assert not rules.poll()
    assert health.counters()["rules.reload_failed"] == 1


def test_the_thread_outlives_everything_that_takes_a_files_place(tmp_path: Path) -> None:
    directory = tmp_path / "rules"
    directory.mkdir()
    rules, health = live(directory)
    rules.start(poll_s=0.01)
    wait = threading.Event()

    def until_counted(name: str, change: Callable[[], object]) -> None:
        before = health.counters().get(name, 0)
        change()
        while health.counters().get(name, 0) == before:
            assert rules._thread is not None
            assert rules._thread.is_alive()
            wait.wait(0.01)

    for number, kind in enumerate(("directory", "pipe", "bomb", "gone"), start=1):
        until_counted("rules.reload_failed", partial(HOSTILE[kind][0], directory / "rule.yaml"))
        if directory.exists():
            directory.rename(tmp_path / f"old{number}")
        spare = tmp_path / f"spare{number}"
        spare.mkdir()
        (spare / "rule.yaml").write_text(SIMPLE.replace("[hide]", "[seek]"))
        until_counted("rules.reloaded", partial(spare.rename, directory))
    rules.stop()
    assert len(rules.judge(*ROW)) == 1
    assert not any(name.startswith("failed.") for name in health.counters())
