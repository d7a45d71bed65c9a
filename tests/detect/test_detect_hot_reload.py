import logging
import threading
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
