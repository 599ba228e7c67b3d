from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fourfold.errors import DownloadError
from fourfold.weights.hub import resolve
from tests.weights.raw import GOLDEN


def test_folders_are_taken_as_they_are(tmp_path: Path):
    assert resolve(tmp_path) == tmp_path
    assert resolve(str(GOLDEN)) == GOLDEN


@pytest.mark.parametrize("name", ["no/such/folder", "nothing", "../x", "a/b/", "-x/y", ""])
def test_what_is_neither_folder_nor_id(name, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name == "":
        assert resolve(name) == Path()  # the current folder
        return
    with pytest.raises(
        DownloadError, match=r"not a Hugging Face repository id; allowed: .*DeepSeek-V4-Flash"
    ):
        resolve(name)


def test_a_file_is_not_a_folder():
    with pytest.raises(DownloadError, match="is a file; give the folder"):
        resolve(GOLDEN / "config.json")


def offline(code: str, home: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = [sys.executable, "-c", f"from fourfold.weights.hub import resolve\n{code}"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_offline_uses_the_cache(tmp_path: Path):
    repository = tmp_path / "hub" / "models--someone--some-model"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    (snapshot / "config.json").write_text("{}")
    done = offline("print(resolve('someone/some-model'))", tmp_path)
    assert done.stdout.strip() == str(snapshot), done.stderr


def test_offline_without_it_says_what_to_do(tmp_path: Path):
    done = offline("resolve('someone/other-model')", tmp_path)
    message = done.stderr.splitlines()[-1]
    assert "DownloadError: someone/other-model: not in the cache" in message
    assert "HF_HUB_OFFLINE is set; unset it" in message
