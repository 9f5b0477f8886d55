"""What all tests share: the project's folder, the optional folder of real data, and one computing thread."""
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # the environment's commands, activated or not
sys.path.insert(0, str(ROOT / "tests"))  # helper scripts that tests start as processes


def shared_data() -> Path:
    """The folder of real data sets: `$VFMKD_SHARED`, else `../shared` beside the project."""
    return Path(os.environ.get("VFMKD_SHARED", ROOT.parent / "shared")) / "data"


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's folder."""
    return ROOT


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets; the test is skipped where there is none."""
    if not (folder := shared_data()).is_dir():
        pytest.skip(f"no real data at {folder} (set VFMKD_SHARED)")
    return folder


@pytest.fixture
def project(tmp_path, monkeypatch) -> dict[str, str]:
    """A project with a tiny report in a temporary folder; its environment, which is also this process's."""
    from tiny_report import make_project

    env = make_project(tmp_path)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    return env
