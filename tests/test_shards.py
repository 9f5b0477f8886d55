"""Feature shards among processes: workers that share a job, one that is killed in the middle of a shard; readers and writers of one store for a long time."""
import os
import random
import signal
import time
from functools import partial

import entries
import pytest
import torch
from entries import FORK, maps, start

from vfmkd_nb.core.cli import main
from vfmkd_nb.core.config import digest
from vfmkd_nb.core.features import FeatureStore
from vfmkd_nb.core.shards import Job, ShardSet, work

JOB = Job("job", range(24), 4)
record = partial(entries.record, store_dtype="float16")


def slowly(i: int) -> tuple:
    """An item of the job that takes a little while, as a teacher does."""
    time.sleep(.05)
    return record(i), maps(i)


def _worker(folder, first, results):
    results.put(work(JOB, folder, slowly, stale=2., first=first))


def complete(folder) -> bool:
    """Whether the published set has every entry, right, and no litter."""
    shards = ShardSet(folder)
    assert shards.verify().empty and len(shards) == len(JOB.items)
    assert all(shards.get(record(i))["P4_S16"].equal(maps(i)["P4_S16"].half()) for i in JOB.items)
    return True


def test_two_workers_share_a_job(tmp_path):
    """Together they make each shard once, whoever comes last publishes, and a third finds nothing to do."""
    results = FORK.Queue()
    workers = [start(_worker, tmp_path, first, results) for first in (0, 3)]
    counts = [results.get(timeout=120) for _ in workers]
    for w in workers:
        w.join(60)
        assert w.exitcode == 0
    assert sum(c["made"] for c in counts) == 6 and sum(c["entries"] for c in counts) == 24 and all(c["made"] for c in counts)
    assert complete(tmp_path) and not list(tmp_path.glob(".*"))
    assert work(JOB, tmp_path, slowly) == {"made": 0, "skipped": 6, "entries": 0}


def test_a_worker_killed_in_a_shard(tmp_path):
    """kill -9 in the middle of a shard: its claim goes stale, the other worker makes the shard; nothing torn is ever published."""
    results = FORK.Queue()
    victim = start(_worker, tmp_path, 0, results)
    while not list(tmp_path.glob(".job-*.claim")):
        time.sleep(.01)
    time.sleep(.12)  # two entries into the shard
    os.kill(victim.pid, signal.SIGKILL)
    victim.join(30)
    assert not (tmp_path / "manifest.json").exists() and len(list(tmp_path.glob(".job-*.claim"))) == 1
    other = start(_worker, tmp_path, 0, results)
    counts = results.get(timeout=120)
    other.join(60)
    assert counts["made"] + counts["skipped"] == 6 and counts["made"] >= 5
    assert complete(tmp_path)


@pytest.mark.parametrize("seed", range(3))
def test_killed_at_any_instant(tmp_path, seed):
    """Workers killed at random instants, again and again, until one is allowed to finish: the set is right."""
    rng = random.Random(seed)
    for _ in range(4):
        p = start(lambda: work(JOB, tmp_path, slowly, stale=.3, wait=False))
        time.sleep(rng.uniform(.05, .5))
        os.kill(p.pid, signal.SIGKILL)
        p.join(30)
        for shard in tmp_path.glob("*.json"):
            assert shard.read_text().endswith("}")  # whole, whenever it is there
    time.sleep(.35)
    work(JOB, tmp_path, slowly, stale=.3)
    assert complete(tmp_path)


def _read(root, seconds, seed, results):
    store, rng, wrong, end = FeatureStore(root), random.Random(seed), 0, time.monotonic() + seconds
    while time.monotonic() < end:
        i = rng.randrange(60)
        if (found := store.get(record(i))) is not None:
            wrong += not found["P4_S16"].equal(maps(i)["P4_S16"].half())
    results.put(("read", store.stats.hits, wrong + store.stats.corrupt))


def _write(root, seconds, seed, results):
    store, rng, n, end = FeatureStore(root), random.Random(seed), 0, time.monotonic() + seconds
    while time.monotonic() < end:
        i = rng.randrange(60)
        store.put(record(i), maps(i))
        n += 1
    results.put(("write", n, 0))


def stress(root, seconds: float) -> list[tuple]:
    """Four readers and two writers on one root: kind, how many, how many wrong."""
    results = FORK.Queue()
    processes = [start(_read, root, seconds, s, results) for s in range(4)] + [start(_write, root, seconds, s, results) for s in (8, 9)]
    found = [results.get(timeout=seconds + 120) for _ in processes]
    for p in processes:
        p.join(60)
        assert p.exitcode == 0
    return found


@pytest.mark.parametrize("seconds", [2, pytest.param(30, marks=pytest.mark.slow)])
def test_readers_and_writers(tmp_path, seconds):
    """4 reader and 2 writer processes for a while: no wrong read, no corrupt entry."""
    found = stress(tmp_path, seconds)
    print(found)
    assert all(wrong == 0 for _, _, wrong in found) and sum(n for kind, n, _ in found if kind == "read") > 20
    assert FeatureStore(tmp_path).verify().empty and not list(tmp_path.rglob("*.tmp"))


def test_keys_are_the_stores(tmp_path):
    """A shard's key is the name of the store's file, so that one can stand in for the other."""
    store = FeatureStore(tmp_path)
    store.put(record(1), maps(1))
    assert store.path(record(1)).stem == digest(record(1))


def test_features_commands(tmp_path, capsys):
    """`vfmkd features` extract, stats, verify, gc, export and import, as typed: what they say, their exit status, and what they leave."""
    def vfmkd(*argv) -> tuple[int, str]:
        status = main([str(a) for a in argv])
        said = capsys.readouterr()
        return status, said.out + said.err

    assert vfmkd("scenes", tmp_path / "boards", "--train", 3, "--val", 1, "--size", 64)[0] == 0
    images, root, set_url = tmp_path / "boards/train/images", tmp_path / "store", (tmp_path / "set").as_uri()
    extract = ["features", "extract", images, "--teacher", "random:0", "--layers", "P5_S32", "--root", root]
    assert vfmkd(*extract) == (0, "computed 3, present 0, unreadable 0\n")
    assert vfmkd(*extract) == (0, "computed 0, present 3, unreadable 0\n")
    assert vfmkd(*extract, "--dtype", "int8") == (0, "computed 3, present 0, unreadable 0\n")
    status, said = vfmkd("features", "stats", "--root", root)
    assert status == 0 and said.split()[-3:-1] == ["random-0", "6"]
    assert vfmkd("features", "export", set_url, "--root", root) == (0, f"{set_url}/manifest.json\n")
    assert vfmkd("features", "verify", set_url)[1].endswith("all sound\n") and vfmkd("features", "stats", tmp_path / "set")[1].startswith("1 shards, 6 entries")
    assert vfmkd("features", "import", set_url, "--root", tmp_path / "other") == (0, "imported 6, present 0\n")
    entry = next(root.rglob("*.safetensors"))
    entry.write_bytes(entry.read_bytes()[:-1] + b"!")
    status, said = vfmkd("features", "verify", "--root", root)
    assert status == 1 and entry.stem in said and "checksum" in said
    assert vfmkd("features", "verify", "--root", root) == (0, "all entries are sound\n")
    assert vfmkd("features", "gc", "--root", root)[1].startswith("temporary 0, quarantined 1, bytes ")
    assert sorted(vfmkd(*extract, *d)[1] for d in ([], ["--dtype", "int8"]))[1] == "computed 1, present 2, unreadable 0\n"  # the lost one alone
    picture = next(images.iterdir())
    picture.write_bytes(picture.read_bytes()[:200])
    status, said = vfmkd(*extract)
    assert status == 1 and "image cannot be read" in said and picture.name in said
    assert vfmkd("features", "export", "http://127.0.0.1:9/set", "--root", root)[0] == 2
