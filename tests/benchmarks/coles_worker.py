"""Train CoLES on a table of events and embed its users. Runs in an environment of its own, see
`coles.py`: `python coles_worker.py EVENTS.parquet OUT.npy EPOCHS`.

CoLES (Babaev et al., SIGMOD 2022) as pytorch-lifestream implements it, without text or labels: a
recurrent network over the events of a user, trained so that parts of one user's events are near.
"""

import sys
from functools import partial

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from ptls.data_load.datasets import inference_data_loader
from ptls.data_load.datasets.memory_dataset import MemoryMapDataset
from ptls.data_load.iterable_processing import SeqLenFilter
from ptls.frames import PtlsDataModule
from ptls.frames.coles import ColesDataset, CoLESModule
from ptls.frames.coles.split_strategy import SampleSlices
from ptls.nn import RnnSeqEncoder, TrxEncoder

CODES = {"text": 32, "modality": 4, "weekday": 4, "hour": 4}  # width of each embedding
STATE = 128  # width of the state, as that of our embeddings
SLICES, SHORTEST, LONGEST = 5, 10, 60  # of each user and step; events in a slice


def records(events: pd.DataFrame) -> list[dict]:
    """Return the events of each user as tensors, in the order of the users."""
    numbers = [name for name in events if name.startswith("number_")]
    found = []
    for user, own in events.groupby("user", sort=True):
        record = {"user": user, "event_time": torch.tensor(own["event_time"].to_numpy())}
        record |= {name: torch.tensor(own[name].to_numpy()) for name in CODES}
        found.append(record | {name: torch.tensor(own[name].to_numpy()) for name in numbers})
    return found


def main(path: str, out: str, epochs: int) -> None:
    """Train on the events, and write one row per user."""
    pl.seed_everything(0)
    torch.set_num_threads(1)
    events = pd.read_parquet(path)
    numbers = {name: "log" for name in events if name.startswith("number_")}
    codes = {
        name: {"in": int(events[name].max()) + 1, "out": width} for name, width in CODES.items()
    }
    encoder = RnnSeqEncoder(
        trx_encoder=TrxEncoder(embeddings_noise=0.003, numeric_values=numbers, embeddings=codes),
        hidden_size=STATE,
        type="gru",
    )
    module = CoLESModule(
        seq_encoder=encoder,
        optimizer_partial=partial(torch.optim.Adam, lr=1e-3),
        lr_scheduler_partial=partial(torch.optim.lr_scheduler.StepLR, step_size=30, gamma=0.9),
    )
    users = records(events)
    long_enough = MemoryMapDataset(data=users, i_filters=[SeqLenFilter(min_seq_len=SHORTEST)])
    slices = SampleSlices(split_count=SLICES, cnt_min=SHORTEST, cnt_max=LONGEST)
    data = PtlsDataModule(
        train_data=ColesDataset(long_enough, splitter=slices),
        train_num_workers=0,
        train_batch_size=64,
    )
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(module, data)
    loader = inference_data_loader(users, num_workers=0, batch_size=256)
    # the loader keeps the order of the users, and drops their ids
    rows = torch.vstack(trainer.predict(module, loader)).cpu().numpy()
    np.save(out, rows.astype(np.float32))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
