"""A process that serves exported models: it has their files and the tables' checkpoint alone.

Run as ``exported_models.py FOLDER LOADER...``; it writes into FOLDER what each way of loading the
tables predicts, and the error that there is before.
"""

import sys
from pathlib import Path

import numpy as np
import torch

import embstore as es
import embstore.serving
from embstore.torch import register

NAMES = ("user", "item")
LOADERS = {
    "searched": lambda path, name: es.serving.open(path, name=name, index="none"),
    "indexed": lambda path, name: es.serving.open(path, name=name),
    "table": lambda path, name: es.Store.load(path)[name],
}


def predictor(path):
    if path.name.endswith(".aoti.pt2"):
        return torch._inductor.aoti_load_package(str(path))
    return torch.export.load(path).module()


def main(folder, loaders):
    with np.load(folder / "ids.npz", allow_pickle=False) as given:
        ids = [torch.from_numpy(given[name]) for name in ("u", "a", "b")]
    models = {path.name: predictor(path) for path in sorted(folder.glob("*.pt2"))}
    try:
        next(iter(models.values()))(*ids)
    except Exception as error:
        (folder / "error.txt").write_text(f"{type(error).__name__}: {error}")
    for loader in loaders:
        for name in NAMES:
            table = LOADERS[loader](folder / "tables", name)
            if loader == "indexed":
                assert table.wait_indexed(60)
            register(name, table)
        found = {name: model(*ids).detach().numpy() for name, model in models.items()}
        np.savez(folder / f"{loader}.npz", **found)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
