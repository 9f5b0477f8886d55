"""A run that is killed, stopped or moved to other workers ends in the same bits as one that was left alone."""
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from toy import OPTIONS, Blobs, Denoiser

from vfmkd_nb.core.checkpoint import RunLock, checkpoints, newest
from vfmkd_nb.core.config import BadInput
from vfmkd_nb.core.train import STOPPED, FitError, Stopped, TrainConfig, fit, read_events, read_log

HERE = Path(__file__).parent
CONFIG = TrainConfig.parse(OPTIONS)


def fingerprint(run: Path) -> dict:
    """Every number of a run that must not depend on how it was made, floats as hex."""
    steps, epochs = read_log(run)
    numbers = {c: [float(x).hex() for x in steps[c]] for c in ("step", "epoch", "total", "error", "uncertainty", "lr", "grad_norm", "images")}
    means = {c: [float(x).hex() for x in epochs[c]] for c in epochs if "seconds" not in c}
    _, state, _ = newest(run / "checkpoints")
    tensors = {k: v.numpy().tobytes() for k, v in state["model"].items()}
    moments = {f"{i}.{k}": v.numpy().tobytes() for i, s in state["optimizer"]["state"].items() for k, v in s.items()}
    return {"steps": numbers, "epochs": means, "weights": tensors, "moments": moments, "task": state["task"]["mean"].hex(), "best": state["best"]}


@pytest.fixture(scope="module")
def calm(tmp_path_factory) -> dict:
    """The undisturbed run."""
    run = tmp_path_factory.mktemp("calm") / "run"
    fit(Denoiser(), Blobs(), Blobs(10), CONFIG, run)
    return fingerprint(run)


def ask(what: str, folder: Path, kills: int, seed: int) -> dict:
    """Let `kill_resume.py` do its work in a process of its own."""
    done = subprocess.run([sys.executable, HERE / "kill_resume.py", what, folder, str(kills), str(seed)], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_killed_twenty_times(tmp_path):
    """SIGKILL at 20 seeded instants, ten of them inside a save, with 0 or 1 loader workers in turn: losses, weights, moments and metrics are the undisturbed run's, bit for bit."""
    told = ask("train", tmp_path, 20, 0)
    assert "error" not in told, told
    assert told["kills"] == 20 and told["in_save"] == 10
    assert len(set(told["reached"])) >= 5, f"the kills did not fall in many places: {told['reached']}"
    calm, killed = fingerprint(tmp_path / "calm"), fingerprint(tmp_path / "killed")
    assert len(calm["steps"]["total"]) == 16 * 4
    for part in calm:
        assert killed[part] == calm[part], part
    assert read_events(tmp_path / "killed")["message"].str.startswith("resumed").any()
    assert not list((tmp_path / "killed" / "checkpoints").glob("*.tmp")), "a killed save's temporary file was left"


def test_two_hundred_kills_in_saves(tmp_path):
    """No kill leaves a checkpoint that cannot be read; that many fell into the middle of a write shows in the temporary files."""
    told = ask("save", tmp_path, 200, 1)
    assert told["kills"] == 200 and told["unreadable"] == 0
    assert told["torn_temporary_files"] >= 20
    assert told["steps"] == sorted(told["steps"]), "a checkpoint got lost"


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(calm, tmp_path, workers):
    fit(Denoiser(), Blobs(), Blobs(10), CONFIG.with_(num_workers=workers), tmp_path / "run")
    assert fingerprint(tmp_path / "run") == calm


@pytest.mark.parametrize("call", [1, 3, 4, 5, 8, 9, 24])
def test_stopped_anywhere_and_resumed(calm, tmp_path, call):
    """SIGTERM in the middle of a forward pass (of the first or second batch of a step, at the end of an epoch): saved, and bit-identical after the resume."""
    run = tmp_path / "run"
    with pytest.raises(Stopped, match="SIGTERM: stopped at step") as stopped:
        fit(Denoiser(at_call={call: lambda: os.kill(os.getpid(), signal.SIGTERM)}), Blobs(), Blobs(10), CONFIG, run)
    assert stopped.value.code == STOPPED == 75
    _, state, _ = newest(run / "checkpoints")
    assert state["step"] == sum(1 for _ in read_log(run)[0].index) > 0
    result = fit(Denoiser(), Blobs(), Blobs(10), CONFIG, run)
    assert result.state["resumed"] == state["step"]
    assert fingerprint(run) == calm


def test_a_process_stopped_by_sigterm_leaves_with_75(tmp_path):
    """From the command line, as a scheduler would do it; the same command then finishes."""
    command = [sys.executable, HERE / "toy.py", tmp_path / "run", "--epochs", "2000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for line in process.stdout:
        if line.startswith("epoch 3/"):
            break
    process.send_signal(signal.SIGTERM)
    rest = process.stdout.read()
    assert process.wait(60) == 75, rest
    path, state, damaged = newest(tmp_path / "run" / "checkpoints")
    assert state["epoch"] >= 3 and not damaged


def test_log_is_cut_and_older_checkpoint_used(calm, tmp_path):
    """The newest checkpoint is damaged after the run: the older is used, said so, and the end is the same."""
    run = tmp_path / "run"
    fit(Denoiser(), Blobs(), Blobs(10), CONFIG, run)
    path = checkpoints(run / "checkpoints")[-1]
    blob = bytearray(path.read_bytes())
    blob[-5] ^= 1
    path.write_bytes(blob)
    result = fit(Denoiser(), Blobs(), Blobs(10), CONFIG, run)
    assert result.state["resumed"] == 10
    assert read_events(run)["message"].str.contains("is damaged: its content does not match its digest").any()
    assert fingerprint(run) == calm
    for path in checkpoints(run / "checkpoints"):
        path.write_bytes(b"nonsense")
    with pytest.raises(BadInput, match="none of the checkpoints in .* can be used"):
        fit(Denoiser(), Blobs(), Blobs(10), CONFIG, run)


def test_board_is_the_logs(tmp_path):
    """After a resume TensorBoard shows each step once, as the log has it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run, config = tmp_path / "run", CONFIG.with_(log_every=1, checkpoint_every=0)
    with pytest.raises(Stopped):
        fit(Denoiser(at_call={11: lambda: os.kill(os.getpid(), signal.SIGINT)}), Blobs(), Blobs(10), config, run)
    fit(Denoiser(), Blobs(), Blobs(10), config, run)
    board = EventAccumulator(str(run / "tb"), size_guidance={"scalars": 0})
    board.Reload()
    steps, epochs = read_log(run)
    assert [e.step for e in board.Scalars("loss/total")] == steps["step"].tolist() == list(range(1, 13))
    assert [e.value for e in board.Scalars("loss/total")] == pytest.approx(steps["total"].tolist(), rel=1e-6)
    assert [e.value for e in board.Scalars("metric/error")][-len(epochs):] == pytest.approx(epochs["error"].tolist(), rel=1e-6)


def test_a_teacher_that_draws_changes_nothing(tmp_path):
    """What is drawn in one step does not reach the next."""

    class WithTeacher(Denoiser):
        def losses(self, batch, epoch):
            found = super().losses(batch, epoch)
            torch.rand(7)  # a teacher with randomness of its own, after the student's
            return found

    one_batch = CONFIG.with_(accumulate=1)
    fit(Denoiser(), Blobs(), Blobs(10), one_batch, tmp_path / "without")
    fit(WithTeacher(), Blobs(), Blobs(10), one_batch, tmp_path / "with")
    assert fingerprint(tmp_path / "with") == fingerprint(tmp_path / "without")


def test_other_options_or_images_are_refused(tmp_path):
    run = tmp_path / "run"
    fit(Denoiser(), Blobs(), None, CONFIG.with_(epochs=1, best_metric=""), run)
    for options, data, said in [({"lr": 0.02}, Blobs(), r"other options \(lr 0.01 → 0.02\)"), ({}, Blobs(29), "30 other training images")]:
        with pytest.raises(BadInput, match=said):
            fit(Denoiser(), data, None, CONFIG.with_(epochs=1, best_metric="", **options), run)
    fit(Denoiser(), Blobs(29), None, CONFIG.with_(epochs=1, best_metric=""), run, resume=False)
    with pytest.raises(BadInput, match="does not fit the model"):
        fit(Denoiser(batch_norm=False), Blobs(29), None, CONFIG.with_(epochs=1, best_metric=""), run)


def test_one_process_per_folder(tmp_path):
    """A second fit in the same folder is refused while the first runs, and nothing of the first is touched."""
    run = tmp_path / "run"

    def again():
        with pytest.raises(BadInput, match="is in use by this process"):
            fit(Denoiser(), Blobs(), None, CONFIG, run)

    fit(Denoiser(at_call={5: again}), Blobs(), Blobs(10), CONFIG, run)
    assert len(read_log(run)[0]) == 12
    pid = os.fork()
    if not pid:
        with RunLock(run):
            (tmp_path / "held").touch()
            time.sleep(60)
        os._exit(1)
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    with pytest.raises(BadInput, match=f"is in use by process {pid} on "):
        fit(Denoiser(), Blobs(), Blobs(10), CONFIG, run)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert fit(Denoiser(), Blobs(), Blobs(10), CONFIG, run).state["step"] == 12
    assert read_events(run)["message"].str.contains(f"process {pid} died while it held this folder").any()


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=r"cannot be written \(Not a directory\)"):
        fit(Denoiser(), Blobs(), None, CONFIG.with_(best_metric=""), tmp_path / "file" / "run")


def test_full_disk_is_named(tmp_path, monkeypatch):
    """The file system has no room for the second checkpoint: one sentence, and with room the run goes on."""
    run, replace = tmp_path / "run", os.replace

    def full(source, target):
        if "step-00000004" in str(target):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(BadInput, match="the disk is full while writing .*step-00000004.safetensors; free some space and start the same command again"):
        fit(Denoiser(), Blobs(), Blobs(10), CONFIG, run)
    monkeypatch.undo()
    assert fit(Denoiser(), Blobs(), Blobs(10), CONFIG, run).state["resumed"] == 2


def test_non_finite_losses_are_skipped_then_end_the_run(tmp_path):
    """A poisoned batch leaves weights and norm statistics as they were, keeps its ids; too many in a row end the run with a dump."""

    class Poisoned(Blobs):
        def get(self, i, rng):
            item = super().get(i, rng)
            return {**item, "image": item["image"] * float("nan")} if rng is not None and i in self.bad else item

    config = CONFIG.with_(accumulate=1, epochs=1, checkpoint_every=0)
    data = Poisoned()
    data.bad = {7}
    task = Denoiser()
    result = fit(task, data, Blobs(10), config, tmp_path / "one")
    skipped = result.steps[result.steps["skipped"].notna()]
    assert len(skipped) == 1 == result.state["skipped"] and "blob-007" in skipped["ids"].iloc[0]
    assert all(torch.isfinite(v).all() for v in task.model.state_dict().values())
    assert result.epochs["train_total"].notna().all() and result.epochs["error"].notna().all()
    data.bad = set(range(30))
    with pytest.raises(FitError, match="was not finite in 3 steps in a row, up to step 3 .* lower lr, or look at the batch and weights in"):
        fit(Denoiser(), data, Blobs(10), config.with_(max_nonfinite=3), tmp_path / "all")
    _, dump, _ = newest(tmp_path / "all" / "nonfinite")
    assert dump["batch"]["image"].isnan().all() and len(dump["record"]["ids"]) == 4 and set(dump) == {"model", "batch", "record"}


def test_flat_loss_is_noticed_within_twenty_steps(tmp_path):
    class Dead(Denoiser):
        def losses(self, batch, epoch):
            return {"total": self.model.log_weight * 0.0 + 0.5}

    fit(Dead(), Blobs(), None, CONFIG.with_(accumulate=1, best_metric=""), tmp_path / "run")
    notices = read_events(tmp_path / "run")
    notices = notices[notices["message"].str.contains("the loss has not changed in 20 steps")]
    assert notices["step"].tolist() == [20]


def test_borders(tmp_path):
    """One image trains; none, and a batch that is larger than the set, are one sentence."""
    config = CONFIG.with_(accumulate=1, batch_size=1, warmup_steps=0, best_metric="")
    assert len(fit(Denoiser(), Blobs(1), Blobs(1), config, tmp_path / "one").steps) == 3
    for n, options, said in [(0, {}, r"the training set \(Blobs\) is empty; expected at least one sample"),
                             (3, {"batch_size": 8}, r"batch_size 8 is larger than the training set \(3 images\); expected at most 3"),
                             (3, {"batch_size": 3, "devices": 2}, r"batch_size 3 is over all processes; expected a multiple of devices \(2\)"),
                             (3, {"warmup_steps": 50}, "warmup_steps 50 leaves nothing of the 9 steps"),
                             (3, {"precision": "16-mixed", "accelerator": "cpu"}, "precision 16-mixed needs a GPU")]:
        with pytest.raises(BadInput, match=said):
            fit(Denoiser(), Blobs(n), None, config.with_(**options), tmp_path / "bad")
    with pytest.raises(BadInput, match="best_metric 'eror' is not among the metrics; did you mean 'error'"):
        fit(Denoiser(), Blobs(3), Blobs(3), config.with_(best_metric="eror"), tmp_path / "bad2")


@pytest.mark.parametrize("options", [{"precision": "bf16-mixed"}, {"channels_last": True}, {"optimizer": "sgd", "scheduler": "onecycle", "warmup_steps": 0, "clip_norm": 0}, {"optimizer": "adam", "scheduler": "step"},
                                     pytest.param({"compile": True}, marks=pytest.mark.slow)], ids=lambda o: "-".join(map(str, o)))
def test_options_train_and_resume(calm, tmp_path, options):
    """Each runs, learns about as well as the plain run, and resumes to the same bits; torch.compile only nearly: its kernels depend on the order in which it met the batch sizes."""
    config = CONFIG.with_(**options)
    whole = fit(Denoiser(), Blobs(), Blobs(10), config, tmp_path / "whole")
    plain = float.fromhex(calm["epochs"]["error"][-1])
    assert whole.epochs["error"].iloc[-1] < 1.5 * plain
    with pytest.raises(Stopped):
        fit(Denoiser(at_call={11: lambda: os.kill(os.getpid(), signal.SIGTERM)}), Blobs(), Blobs(10), config, tmp_path / "stopped")
    fit(Denoiser(), Blobs(), Blobs(10), config, tmp_path / "stopped")
    if "compile" in options:
        assert read_log(tmp_path / "stopped")[0]["total"].tolist() == pytest.approx(whole.steps["total"].tolist(), rel=1e-4)
    else:
        assert fingerprint(tmp_path / "stopped") == fingerprint(tmp_path / "whole")
