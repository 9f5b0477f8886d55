"""The feature store among processes: readers and writers at once, a writer that is killed, a disk that is full, damage on disk."""
import os
import pickle
import random
import resource
import signal
import time
from pathlib import Path

import pytest
import torch
from entries import FORK, maps, record, start
from safetensors.torch import load_file, save_file

from vfmkd_nb.core.features import FeatureStore


def finish(process, timeout: float = 120) -> None:
    """Wait for a process; it must have ended well."""
    process.join(timeout)
    assert process.exitcode == 0


def _use(root, seed, results):
    store, rng = FeatureStore(root, verify="always"), random.Random(seed)
    for i in rng.choices(range(40), k=200) + list(range(40)):
        found = store.get_or_compute(record(i), lambda: maps(i))
        assert found["P4_S16"].equal(maps(i)["P4_S16"]), i
        if rng.random() < .1:
            store.put(record(i), maps(i))  # replaced under the readers
    results.put((store.stats.hits, store.stats.misses, store.stats.corrupt))


def test_many_processes_read_and_write_one_root(tmp_path):
    """Four processes ask for the same 40 entries in different orders, each computing what it misses; every answer is right, and nothing is corrupt."""
    results = FORK.Queue()
    workers = [start(_use, tmp_path, seed, results) for seed in range(4)]
    counts = [results.get(timeout=120) for _ in workers]
    for w in workers:
        finish(w)
    assert all(hits + misses == 240 and corrupt == 0 for hits, misses, corrupt in counts)
    store = FeatureStore(tmp_path)
    assert store.verify().empty and store.sizes().entries.sum() == 40
    assert not list(tmp_path.rglob("*.tmp")) and not list(tmp_path.glob("*/quarantine"))
    for i in range(40):
        assert store.get(record(i))["P4_S16"].equal(maps(i)["P4_S16"])
    assert store.stats.hit_rate == 1


def _write_for_ever(root):
    store, big = FeatureStore(root), maps(1, 8192)  # 32 MB: written long enough to be killed in the middle
    while True:
        store.put(record(1), big)


def test_killed_in_put(tmp_path):
    """kill -9 while an entry is being written: the entry is whole or absent, its neighbours are untouched, `gc` sweeps the rest."""
    store = FeatureStore(tmp_path)
    store.put(record(0), maps(0))
    deadline = time.monotonic() + 100
    while len(left := list(tmp_path.glob("*/??/.*.tmp"))) < 3:  # what a killed writer leaves; a kill between two writes leaves nothing
        writer = start(_write_for_ever, tmp_path)
        while len(list(tmp_path.glob("*/??/.*.tmp"))) <= len(left):
            assert time.monotonic() < deadline and writer.is_alive()
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        assert writer.exitcode == -signal.SIGKILL
    assert store.verify().empty
    assert store.get(record(0))["P4_S16"].equal(maps(0)["P4_S16"])
    found = store.get(record(1))
    assert found is None or found["P4_S16"].equal(maps(1, 8192)["P4_S16"])
    assert store.gc()["temporary"] == 0, "a writer may still be at work on files this young"
    assert store.gc(older_than=-1)["temporary"] == 3 and not list(tmp_path.rglob("*.tmp"))


def _write_to_a_full_disk(root):
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
    with pytest.raises(OSError, match="File too large"):
        FeatureStore(root).get_or_compute(record(0), lambda: maps(0))


def test_full_disk_raises_and_leaves_nothing(tmp_path):
    """A write that fails is an error, never a store that silently stays empty (the limit on a file's size stands in for a full disk)."""
    finish(start(_write_to_a_full_disk, tmp_path))
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_read_only_root_raises(tmp_path):
    """No permission to write is an error as well."""
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError):
        FeatureStore(tmp_path).put(record(0), maps(0))
    tmp_path.chmod(0o700)


def settled(store: FeatureStore, i: int) -> Path:
    """An entry that has been at rest long enough for its verification to be remembered, and was read twice."""
    store.put(record(i), maps(i))
    time.sleep(0.1)
    assert store.get(record(i)) is not None and store.get(record(i)) is not None
    assert str(store.path(record(i))) in store._verified
    return store.path(record(i))


@pytest.mark.parametrize("verify", ["changed", "always"])
@pytest.mark.parametrize("keep_times", [False, True])
def test_flip_after_verification_is_noticed(tmp_path, verify, keep_times):
    """A file changed in place after it was verified is verified again, even when its modification time is set back."""
    store = FeatureStore(tmp_path, verify=verify)
    path = settled(store, 0)
    before = path.stat()
    with open(path, "r+b") as f:
        f.seek(-100, os.SEEK_END)
        byte = f.read(1)
        f.seek(-1, os.SEEK_CUR)
        f.write(bytes([byte[0] ^ 4]))
    if keep_times:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert store.get(record(0)) is None
    assert (store.stats.corrupt, store.stats.misses) == (1, 1)
    assert not path.exists() and len(list(tmp_path.glob("*/quarantine/*"))) == 1
    assert store.get_or_compute(record(0), lambda: maps(0))["P4_S16"].equal(maps(0)["P4_S16"])


@pytest.mark.parametrize("damage", ["empty", "cut", "longer", "foreign", "garbage", "other record", "no metadata"])
def test_damage_is_a_counted_miss(tmp_path, damage):
    """Whatever lies under an entry's name: moved aside, counted, computed again."""
    store = FeatureStore(tmp_path)
    path = settled(store, 0)
    store.put(record(1), maps(1))
    whole = path.read_bytes()
    if damage == "no metadata":
        save_file(maps(0), path)
    else:
        path.write_bytes({"empty": b"", "cut": whole[:-1], "longer": whole + b"\0", "foreign": b"not a safetensors file at all", "garbage": os.urandom(5000),
                          "other record": store.path(record(1)).read_bytes()}[damage])
    assert store.get(record(0)) is None and store.stats.corrupt == 1
    assert store.get_or_compute(record(0), lambda: maps(0))["P4_S16"].equal(maps(0)["P4_S16"])
    assert store.verify().empty and load_file(path)["P4_S16"].equal(maps(0)["P4_S16"])


def _read_and_cut(root):
    store = FeatureStore(root)
    found = store.get(record(0))
    os.truncate(store.path(record(0)), 0)
    assert found["P4_S16"].equal(maps(0)["P4_S16"])


def test_entries_do_not_depend_on_their_file(tmp_path):
    """A file that is cut to nothing under a reader does not change (or kill with a bus error) what was read."""
    FeatureStore(tmp_path).put(record(0), maps(0))
    finish(start(_read_and_cut, tmp_path))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_dtypes_come_back(tmp_path, dtype):
    """Stored and returned in the record's dtype, the same bits on the miss and on the hit."""
    store, r = FeatureStore(tmp_path), {**record(0), "store_dtype": dtype}
    made = store.get_or_compute(r, lambda: maps(0))["P4_S16"]
    read = store.get_or_compute(r, lambda: pytest.fail("a second run computed"))["P4_S16"]
    assert made.dtype == read.dtype == getattr(torch, dtype) and made.equal(read)
    read += 1  # a caller may write into what it got
    assert store.get(r)["P4_S16"].equal(made)


def test_store_travels_to_loader_workers(tmp_path):
    """A store pickles (spawned workers), and a worker's reads are right."""
    store = FeatureStore(tmp_path)
    store.put(record(0), maps(0))
    assert pickle.loads(pickle.dumps(store)).get(record(0))["P4_S16"].equal(maps(0)["P4_S16"])


def test_default_root_follows_the_environment(tmp_path, monkeypatch):
    """Without a root the store lies in the data folder."""
    monkeypatch.setenv("VFMKD_DATA", str(tmp_path))
    assert FeatureStore().root == tmp_path / "features"
