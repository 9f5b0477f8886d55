"""What the tests of the feature store and of its shards share: entries that every process makes alike, and processes of their own."""
import multiprocessing

import torch

FORK = multiprocessing.get_context("fork")  # as the loader's workers start on Linux, and without importing torch again


def record(i: int, store_dtype: str = "float32") -> dict:
    """The record of entry `i`."""
    return dict(image_sha256=f"{i:064x}", teacher="random:0", weights_sha256="0" * 64, extractor="test/1", preprocessing={"size": None},
                layers=["P4_S16"], view="identity", compute_dtype="float32", store_dtype=store_dtype)


def maps(i: int, channels: int = 16) -> dict:
    """Its maps, the same in every process."""
    return {"P4_S16": torch.randn(channels, 32, 32, generator=torch.Generator().manual_seed(i))}


def start(target, *args):
    """A process of its own that runs `target`, with one computing thread."""
    def run():
        torch.set_num_threads(1)
        target(*args)
    process = FORK.Process(target=run)
    process.start()
    return process
