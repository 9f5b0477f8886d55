"""Two processes take the steps of one: the same samples, the same losses, one writer. Forked from a program, started by torchrun, and from a notebook cell."""
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from toy import OPTIONS, Blobs, Denoiser

from vfmkd_nb.core.checkpoint import load_weights, newest
from vfmkd_nb.core.config import BadInput
from vfmkd_nb.core.train import STOPPED, TrainConfig, fit, read_log

HERE = Path(__file__).parent
CONFIG = TrainConfig.parse(OPTIONS)


def seen(folder: Path) -> list[tuple[int, str]]:
    """(epoch, id) of every sample that any process has seen, sorted."""
    return sorted((int(e), i) for f in folder.glob("ids-*.txt") for e, i in (line.split() for line in f.read_text().splitlines()))


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """One process (no dropout, no batch norm: those are per process by nature)."""
    folder = tmp_path_factory.mktemp("alone")
    fit(Denoiser(watch=folder, batch_norm=False, dropout=0.0), Blobs(), Blobs(10), CONFIG, folder / "run")
    return folder


def assert_same_run(folder: Path, alone: Path) -> None:
    """The samples of each epoch, every step and every metric are those of one process, up to the order of float sums."""
    assert seen(folder) == seen(alone)
    assert set(Counter(seen(folder)).values()) == {1} and len(seen(folder)) == 90
    (steps, epochs), (steps1, epochs1) = read_log(folder / "run"), read_log(alone / "run")
    assert steps["step"].tolist() == steps1["step"].tolist() == list(range(1, 13)), "more than one process has written"
    for name in ("total", "error", "grad_norm", "lr"):
        assert steps[name].tolist() == pytest.approx(steps1[name].tolist(), rel=2e-4), name
    assert epochs["error"].tolist() == pytest.approx(epochs1["error"].tolist(), rel=2e-4)
    assert len(list((folder / "run" / "tb").iterdir())) == 1


def test_forked_from_a_program(alone, tmp_path):
    done = subprocess.run([sys.executable, HERE / "toy.py", tmp_path / "run", "--devices", "2"], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("end of run") == 1, "what follows fit runs once"
    assert_same_run(tmp_path, alone)


@pytest.mark.slow
def test_started_by_torchrun(alone, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", HERE / "toy.py", tmp_path / "run", "--devices", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_run(tmp_path, alone)


def test_in_a_notebook(alone, tmp_path):
    """In a kernel that has already trained, as a person would."""
    cells = [f"import sys; sys.path.insert(0, {str(HERE)!r})\nfrom pathlib import Path\nfrom toy import *\nfolder = Path({str(tmp_path)!r})",
             "options = {**OPTIONS, 'epochs': 1}\nfit(Denoiser(), Blobs(), Blobs(10), TrainConfig.parse(options), folder/'before').state['step']",
             "task = Denoiser(watch=folder, batch_norm=False, dropout=0.0)\nresult = fit(task, Blobs(), Blobs(10), TrainConfig.parse({**OPTIONS, 'devices': 2}), folder/'run')",
             "from vfmkd_nb.core.checkpoint import newest\nbest = newest(folder/'run'/'checkpoints')[1]['model']\n"
             "assert all(torch.equal(v, best[k]) for k, v in task.model.state_dict().items()), 'the trained weights are not in this process'\n"
             "result.epochs['error'].tolist()"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    NotebookClient(notebook, timeout=200, kernel_name="python3").execute()
    assert_same_run(tmp_path, alone)


@pytest.mark.slow
def test_killed_together_and_resumed_alike(tmp_path):
    """Two processes are stopped by one SIGTERM after the same step, and the resumed run ends as an undisturbed one."""
    for name in ("calm", "stopped"):
        (tmp_path / name).mkdir()
    command = [sys.executable, HERE / "toy.py", tmp_path / "stopped" / "run", "--devices", "2", "--epochs", "60"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    for line in process.stdout:
        if line.startswith("epoch 2/"):
            break
    process.send_signal(signal.SIGTERM)
    process.stdout.read()
    assert process.wait(60) == STOPPED
    at = newest(tmp_path / "stopped" / "run" / "checkpoints")[1]["step"]
    assert 8 <= at < 240
    for name in ("calm", "stopped"):
        done = subprocess.run([sys.executable, HERE / "toy.py", tmp_path / name / "run", *map(str, command[3:])], capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr[-3000:]
    calm, stopped = (newest(tmp_path / name / "run" / "checkpoints")[1]["model"] for name in ("calm", "stopped"))
    assert all(calm[k].numpy().tobytes() == stopped[k].numpy().tobytes() for k in calm)
    assert [x.hex() for x in read_log(tmp_path / "calm" / "run")[0]["total"]] == [x.hex() for x in read_log(tmp_path / "stopped" / "run")[0]["total"]]


def test_an_error_in_a_process_is_one_sentence(tmp_path):
    class Unreadable(Blobs):
        def get(self, i, rng):
            if i == 11:
                raise BadInput("blob-011.png cannot be decoded.")
            return super().get(i, rng)

    with pytest.raises(BadInput, match=r"^blob-011.png cannot be decoded.$"):
        fit(Denoiser(batch_norm=False), Unreadable(), Blobs(10), CONFIG.with_(devices=2), tmp_path / "run")


def test_weights_are_found(alone):
    """The weights in a checkpoint, by the loader that reads anyone's weights."""
    path, state, _ = newest(alone / "run" / "checkpoints")
    assert load_weights(path).keys() == state["model"].keys()
