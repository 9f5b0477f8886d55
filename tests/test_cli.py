"""The console command as a user meets it: quick help, mistakes in one sentence, exit statuses."""
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_report import make_project, vfmkd

import vfmkd_nb
from vfmkd_nb.core.cli import main


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project of one small report."""
    return make_project(tmp_path_factory.mktemp("project"))


def test_help_is_quick_and_imports_nothing_heavy(project):
    code = "import sys; from vfmkd_nb.core.cli import main; main(['--help']); print(sorted({'torch', 'pandas', 'papermill', 'matplotlib', 'pydantic'} & set(sys.modules)))"
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        seconds.append(time.perf_counter() - start)
    assert done.stdout.splitlines()[-1] == "[]"
    assert min(seconds) < 0.7, f"--help takes {min(seconds):.2f} s"


def test_the_installed_command_runs():
    done = subprocess.run([Path(sys.executable).parent / "vfmkd", "version"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == vfmkd_nb.__version__


@pytest.mark.parametrize("argv, said", [
    (["reports"], "there is no command 'reports'; did you mean 'report'?"),
    (["report", "tyni"], "there is no report 'tyni'; did you mean 'tiny'?"),
    (["report", "tiny", "--epoch", "3"], "unknown option --epoch; did you mean --epochs?"),
    (["report", "tiny", "--epochs", "x"], "option 'epochs' is 'x', expected a valid integer"),
    (["report", "tiny", "--epochs"], "option --epochs needs a value"),
    (["report", "tiny", "epochs=3"], "'epochs=3' is not an option"),
    (["report", "tiny", "--config", "none.yaml"], "configuration file none.yaml does not exist"),
    (["ablate", "tiny"], "either --grid or --variants"),
    (["ablate", "tiny", "--grid", "mask=none,bnad"], "option 'mask' is 'bnad'"),
    (["ablate", "tiny", "--grid", "mask=none", "--seeds", "few"], "neither a number of seeds nor a list"),
    (["ablate", "tiny", "--grid", "mask=none", "--set", "mask=band"], "option 'mask' is fixed, and set by variant"),
    (["ablate", "tiny", "--grid", "mask=none", "--workers", "0"], "at least one worker"),
    (["ablate", "tiny", "--grid", "seed=1,2"], "belongs to the seeds"),
    (["compare", "abc", "def"], "have an id that begins with 'abc'"),
    (["doctor", "nowhere", "--split", "val"], "data folder nowhere does not exist"),
    (["features", "stats", "--root", "nowhere"], "there is no feature store at nowhere"),
    (["teacher", "check"], "teacher check wants a teacher"),
])
def test_mistakes_are_one_sentence(project, argv, said, tmp_path, monkeypatch, capsys):
    for name, value in project.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    status = main(argv)
    out, err = capsys.readouterr()
    assert status == 2, err
    assert said in err and err.startswith("vfmkd: ") and err.count("\n") == 1 and not out
    assert not (Path(project["VFMKD_REPORTS"]) / "ablations").exists()


def test_the_doctor_reports_a_missing_file_in_its_table(tmp_path, capsys):
    assert main(["doctor", str(tmp_path / "none.json"), str(tmp_path)]) == 1
    assert "file cannot be used" in capsys.readouterr().out


def test_help_of_a_report_lists_its_parameters(project):
    done = vfmkd(project, "report", "tiny", "--help")
    assert done.returncode == 0
    for text in ("--epochs INT", "passes over the data [3]", "--fail-at INT", "a seed that fails half-way [-1]", "A report in miniature."):
        assert text in done.stdout


def test_from_report_to_comparison(project, tmp_path):
    """A report, the same again, one that fails, the index, a comparison of two."""
    first = vfmkd(project, "report", "tiny", "--epochs", "2", "--mask=band")
    assert first.returncode == 0 and "done in" in first.stdout, first.stderr
    assert "is done already" in vfmkd(project, "report", "tiny", "--epochs", "2", "--mask", "band").stdout
    (tmp_path / "c.yaml").write_text("epochs: 2\nfail_at: 0\n")
    failed = vfmkd(project, "report", "tiny", "--config", str(tmp_path / "c.yaml"))
    assert failed.returncode == 1 and "seed of misfortune" in failed.stderr and failed.stderr.count("\n") == 1
    second = vfmkd(project, "report", "tiny", "--epochs", "2", "--quiet")
    assert second.returncode == 0 and not second.stdout
    index = vfmkd(project, "index").stdout.strip()
    text = open(index).read()
    assert text.count("<tr data-item") == 3 and "seed of misfortune" in text
    runs = [p.parent for p in Path(index).parent.glob("tiny/*/metrics.json")]
    compared = vfmkd(project, "compare", *map(str, runs), "--out", str(tmp_path / "compared"))
    assert compared.returncode == 0 and "mask=band" in compared.stdout and (tmp_path / "compared" / "comparison.html").is_file(), compared.stderr
