"""Panoptic quality of 500 images of 640×480, PNGs decoded, must take at most 15 s of processor time on two cores' worth of work (one process here)."""
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from vfmkd_nb.panoptic.coco import read_id_png, write_id_png
from vfmkd_nb.panoptic.metrics import panoptic_quality

IMAGES, BOUND = 500, 15.0
CATEGORIES = [{"id": i, "name": f"c{i}", "isthing": int(i <= 80)} for i in range(1, 134)]


def scene(rng):
    """30 cells of random size, ids spread over three bytes, and their list."""
    rows, columns = (np.sort(rng.choice(np.arange(40, n - 40), k, replace=False)) for n, k in ((480, 4), (640, 5)))
    cells = np.searchsorted(rows, np.arange(480))[:, None] * 6 + np.searchsorted(columns, np.arange(640))[None]
    ids = rng.choice(np.arange(1, 1 << 24), 30, replace=False)
    return ids[cells], [{"id": int(i), "category_id": int(rng.integers(1, 134))} for i in ids]


def main():
    rng, folder = np.random.default_rng(0), Path(tempfile.mkdtemp())
    scenes = [scene(rng) for _ in range(10)]
    for k, (ids, _) in enumerate(scenes):
        write_id_png(folder / f"gt_{k}.png", ids)
        write_id_png(folder / f"pred_{k}.png", np.roll(ids, 7, 1))
    read = lambda kind: ((read_id_png(folder / f"{kind}_{k % 10}.png"), scenes[k % 10][1]) for k in range(IMAGES))
    begin, wall = time.process_time(), time.perf_counter()
    found = panoptic_quality(read("pred"), read("gt"), CATEGORIES)
    used, wall = time.process_time() - begin, time.perf_counter() - wall
    print(f"{IMAGES} images of 640×480 with 30 segments: {used:.1f} s of processor time ({wall:.1f} s by the clock), bound {BOUND:g} s; PQ {found['All']['pq']:.3f}")
    return int(used > BOUND)


if __name__ == "__main__":
    sys.exit(main())
