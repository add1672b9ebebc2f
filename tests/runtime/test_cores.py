"""Cores: the least of the affinity and the quotas of all groups around the process."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from enginewright.runtime.cores import available_cores, warn_of_threads

V2, V1 = "0::/a/b\n", "9:pids:/x\n4:cpu,cpuacct:/a/b\n2:cpuacct:/y\n"


@pytest.fixture(autouse=True)
def _eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


def system(root: Path, groups: str, files: dict[str, str]) -> Path:
    """A root with a /proc/self/cgroup and files below /sys/fs/cgroup."""
    for name, text in {"proc/self/cgroup": groups, **_below(files)}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def _below(files: dict[str, str]) -> dict[str, str]:
    return {f"sys/fs/cgroup/{name}": text for name, text in files.items()}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"a/b/cpu.max": "max 100000\n"}, 8),
        ({"a/b/cpu.max": "300000 100000\n"}, 3),
        ({"a/b/cpu.max": "150000 100000\n"}, 2),
        ({"a/b/cpu.max": "1000 100000\n"}, 1),
        ({"a/b/cpu.max": "3200000 100000\n"}, 8),
        ({"a/b/cpu.max": "max 100000\n", "a/cpu.max": "200000 100000\n"}, 2),
        ({"a/b/cpu.max": "200000 100000\n", "a/cpu.max": "500000 100000\n"}, 2),
        ({"cpu.max": "400000 100000\n"}, 4),
        ({"a/b/cpu.max": ""}, 8),
        ({"a/b/cpu.max": "0 0\n"}, 8),
        ({"a/b/cpu.max": "a lot\n"}, 8),
        ({"other/cpu.max": "100000 100000\n"}, 8),
        ({}, 8),
    ],
)
def test_the_quota_of_version_2(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    assert available_cores(system(tmp_path, V2, files)) == expected


@pytest.mark.parametrize(
    ("group", "quota", "expected"),
    [("a/b", "-1", 8), ("a/b", "250000", 3), ("a", "100000", 1), ("", "400000", 4)],
)
def test_the_quota_of_version_1(tmp_path: Path, group: str, quota: str, expected: int) -> None:
    folder = f"cpu,cpuacct/{group}"
    files = {f"{folder}/cpu.cfs_quota_us": quota, f"{folder}/cpu.cfs_period_us": "100000\n"}
    assert available_cores(system(tmp_path, V1, files)) == expected


def test_a_group_of_another_controller_does_not_count(tmp_path: Path) -> None:
    files = {"cpuacct/y/cpu.cfs_quota_us": "100000", "cpuacct/y/cpu.cfs_period_us": "100000"}
    assert available_cores(system(tmp_path, V1, files)) == 8


def test_the_affinity_holds_where_it_is_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {5})
    assert available_cores(system(tmp_path, V2, {"a/b/cpu.max": "400000 100000"})) == 1


def test_a_system_without_groups_or_affinity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert available_cores(tmp_path) == 8
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cores(tmp_path) == 1


def test_this_machine_has_at_least_one() -> None:
    assert 1 <= available_cores() <= 8


@pytest.mark.parametrize(
    ("quota", "threads", "told"),
    [
        ("max", 9, 8),
        ("max", 8, None),
        ("300000", 4, 3),
        ("300000", 3, None),
        ("100000", None, None),
    ],
)
def test_threads_beyond_the_cores_are_told(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    quota: str,
    threads: int | None,
    told: int | None,
) -> None:
    root = system(tmp_path, V2, {"a/b/cpu.max": f"{quota} 100000"})
    with caplog.at_level(logging.WARNING):
        warn_of_threads(threads, root)
    found = [record.getMessage() for record in caplog.records]
    assert len(found) == (told is not None)
    if found:
        assert found[0].startswith(f"threads={threads}: this process may use {told} cores, by its ")
        assert found[0].endswith(f"give at most {told}, or leave threads out")
