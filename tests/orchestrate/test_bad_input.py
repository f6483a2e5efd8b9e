"""What the platform is given at its worst: one sentence, an exit code, and nothing half done."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from orchestrate.platform_place import Platform
from the0.errors import ExitCode

MAIN = "def main(bot_id, config):\n    print('here', flush=True)\n"
ABOUT = "name: b\ntype: realtime\nruntime: python3.11\nversion: '1'\nentrypoints: {bot: main.py}\n"
WHOLE = {"main.py": MAIN, "bot-config.yaml": ABOUT}


def folder(base: Path, files: Mapping[str, str]) -> Path:
    made = base / "my-bot"
    made.mkdir()
    for name, text in files.items():
        (made / name).write_text(text)
    return made


def refused(platform: Platform, source: Path, *flags: str, code: int) -> str:
    """What `deploy` says; nothing of it is stored."""
    before = stored(platform)
    done = subprocess.run(
        [sys.executable, "-I", "-m", "the0.cli", "deploy", str(source), *flags, "--data", platform.data.path],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("the0: ")
    assert stored(platform) == before
    return done.stderr


def stored(platform: Platform) -> tuple[list[str], list[str]]:
    code = Path(platform.data.objects, "custom-bots")
    return (
        [each.id for kind in ("realtime", "scheduled") for each in platform.bots.list(kind)],  # type: ignore[arg-type]
        sorted(str(path.relative_to(code)) for path in code.rglob("*") if path.is_file()),
    )


def test_a_folder_that_says_nothing_of_itself(platform: Platform, tmp_path: Path) -> None:
    said = refused(platform, folder(tmp_path, {"main.py": MAIN}), code=ExitCode.USAGE)
    assert "bot-config.yaml" in said
    assert "--runtime" in said


def test_an_empty_folder_and_none_at_all(platform: Platform, tmp_path: Path) -> None:
    assert "no files" in refused(platform, folder(tmp_path, {}), code=ExitCode.CODE)
    assert "nowhere" in refused(platform, tmp_path / "nowhere", code=ExitCode.USAGE)


def test_an_archive_over_the_limit_is_refused_before_it_is_read(platform: Platform, tmp_path: Path) -> None:
    source = folder(tmp_path, WHOLE)
    with open(source / "large", "wb") as file:
        file.truncate(9 << 30)
    assert "over 8 GiB" in refused(platform, source, code=ExitCode.CODE)


def test_a_zip_that_is_none(platform: Platform, tmp_path: Path) -> None:
    (tmp_path / "bot.zip").write_bytes(b"PK\x03\x04 and nothing more")
    assert "bot.zip" in refused(platform, tmp_path / "bot.zip", code=ExitCode.CODE)


def test_a_runtime_that_nobody_knows(platform: Platform, tmp_path: Path) -> None:
    source = folder(tmp_path, {**WHOLE, "bot-config.yaml": ABOUT.replace("python3.11", "cobol85")})
    said = refused(platform, source, code=ExitCode.LANGUAGE)
    assert "cobol85" in said
    assert "python3.11" in said


def test_a_runtime_that_this_machine_lacks(platform: Platform) -> None:
    """Its bot says so; the others run."""
    platform.put("b")
    found = platform.bots.get("b")
    assert found is not None
    custom = dict(found.body["custom"])
    custom["config"] = {**custom["config"], "runtime": "scala3", "entrypoints": {"bot": "bot.jar:Main"}}
    platform.bots.update("b", "realtime", custom=custom)
    platform.put("good")
    platform.up(PATH="/nowhere")
    row = platform.until("b", "error", within_s=60)
    assert "java" in row["reason"]
    assert row["last_exit"]["code"] == ExitCode.LANGUAGE
    platform.until("good", "running", within_s=60)


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("this user mounts nothing")
    platform = Platform(small)
    try:
        source = folder(tmp_path, WHOLE)
        (source / "data").write_bytes(os.urandom(4 << 20))
        said = refused(platform, source, code=ExitCode.LOCAL_DISK)
        assert "No space left" in said or "full" in said
        (source / "data").unlink()
        platform.put("small-enough")
    finally:
        platform.close()
        subprocess.run(["umount", "-l", str(small)], check=True)
