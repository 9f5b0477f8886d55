"""Speed of store reads against bare `safetensors.torch.load_file` on the same files, interleaved in one run.

`load_file` maps a file and returns before its bytes are read, so it is measured twice: as it is, and with every page
touched (one byte in 4096), which is what any use of the features pays. The store always delivers the bytes.
Promised: re-reading through the store >= 0.6x `load_file`. Run: python tests/bench/bench_features.py
"""
import statistics
import sys
import tempfile
import time

import torch
from safetensors.torch import load_file

from vfmkd_nb.core.features import FeatureStore

ENTRIES, ROUNDS, BOUND = 24, 15, 0.6


def record(i: int) -> dict:
    """The record of entry `i`, shaped like that of a SAM 2 teacher."""
    preprocessing = {"size": 1024, "resize": "stretch", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "source": [768, 1024]}
    return dict(image_sha256=f"{i:064x}", teacher="random:0", weights_sha256="0" * 64, extractor="bench/1", preprocessing=preprocessing,
                layers=["P4_S16"], view="identity", compute_dtype="float32", store_dtype="float16")


def touched(path) -> dict:
    """`load_file`, and one byte of every page read."""
    maps = load_file(path)
    for m in maps.values():
        m.view(torch.uint8).flatten()[::4096].sum()
    return maps


def main() -> int:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        writer = FeatureStore(root)
        records = [record(i) for i in range(ENTRIES)]
        for i, r in enumerate(records):
            writer.put(r, {"P4_S16": torch.randn(256, 64, 64, generator=torch.Generator().manual_seed(i)).half()})
        paths = [writer.path(r) for r in records]
        time.sleep(0.2)  # let file times settle, as in a second run
        store, strict = FeatureStore(root), FeatureStore(root, verify="always")
        for r, p in zip(records, paths):  # warm the page cache; the store verifies here
            assert store.get(r)["P4_S16"].equal(load_file(p)["P4_S16"]) and strict.get(r) is not None
        ways = {"load_file (mapped, unread)": lambda r, p: load_file(p), "load_file + touch": lambda r, p: touched(p),
                "load_file pread": lambda r, p: load_file(p, backend="pread"),
                "store, re-read": lambda r, p: store.get(r), "store, verify always": lambda r, p: strict.get(r)}
        times = {name: [] for name in ways}
        order = list(ways.items())
        for _ in range(ROUNDS):
            order.append(order.pop(0))  # whoever reads a file first pays for the processor's caches
            for r, p in zip(records, paths):
                for name, way in order:
                    begin = time.perf_counter()
                    way(r, p)
                    times[name].append(time.perf_counter() - begin)
        assert store.stats.misses == strict.stats.misses == 0
    medians = {name: statistics.median(t) for name, t in times.items()}
    for name, t in medians.items():
        print(f"{name:28} {1e3 * t:7.3f} ms  {2.097 / t / 1e3:6.2f} GB/s")
    base = medians["load_file (mapped, unread)"]
    ratio = base / medians["store, re-read"]
    print(f"store, re-read / load_file: {ratio:.2f}x (bound {BOUND}x); with the checksum of every read: {base / medians['store, verify always']:.2f}x; "
          f"against load_file with its pages touched: {medians['load_file + touch'] / medians['store, re-read']:.2f}x and {medians['load_file + touch'] / medians['store, verify always']:.2f}x")
    return 0 if ratio >= BOUND else 1


if __name__ == "__main__":
    sys.exit(main())
