"""What everything that is on by default costs: logging, checkpoints, pictures, progress bar, against a bare `pl.Trainer`.

    python benchmarks/trainer.py
"""
import logging
import statistics
import tempfile
import time

import pytorch_lightning as pl
import torch
from monai.networks.nets import UNet
from torch import nn

from mmv_im2im.data_modules.data_module import Im2ImDataModule
from mmv_im2im.data_modules.samples import simulate_set
from mmv_im2im.models.fcn import FCN
from mmv_im2im.trainers import Im2ImTrainer

STEPS, STEP, EPOCHS, ROUNDS = 100, 0.05, 10, 2


class Slow(FCN):
    "Steps that take at least 50 ms, most of it asleep, as with a GPU that is at work."
    def losses(self, batch):
        begun = time.perf_counter()
        parts = super().losses(batch)
        time.sleep(max(0.0, STEP - (time.perf_counter() - begun)))
        return parts


class Epochs(pl.Callback):
    "Seconds from the beginning of training to its end."
    def on_train_start(self, *_): self.begun = time.perf_counter()

    def on_train_end(self, *_): self.seconds = time.perf_counter() - self.begun


def fit(ours: bool, images: str, folder: str) -> float:
    "Seconds of an epoch of 100 steps with its validation."
    torch.manual_seed(0)
    model = Slow(UNet(2, 1, 1, channels=(8, 16), strides=(2,)), nn.MSELoss())
    data = Im2ImDataModule(images, patch=(64, 64), batch_size=2, patches_per_image=2 * STEPS // 10, val_fraction=0.25)
    clock = Epochs()
    if ours:
        trainer = Im2ImTrainer(folder, max_epochs=EPOCHS, accelerator="cpu", callbacks=[clock])
    else:
        trainer = pl.Trainer(max_epochs=EPOCHS, accelerator="cpu", callbacks=[clock], logger=False, enable_checkpointing=False,
                             enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, use_distributed_sampler=False)
    trainer.fit(model, data)
    assert trainer.global_step == STEPS * EPOCHS, trainer.global_step
    return clock.seconds / EPOCHS


def main() -> None:
    "Print the figure."
    torch.set_num_threads(1)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    seconds = {True: [], False: []}
    with tempfile.TemporaryDirectory() as d:
        images = simulate_set(f"{d}/images", 13, (256, 256))
        for i in range(ROUNDS):
            for ours in (False, True): seconds[ours].append(fit(ours, images, f"{d}/run{i}"))
    a, b = (statistics.median(seconds[k]) for k in (True, False))
    print(f"figure trainer_overhead_fraction: {a / b - 1:.4f} ({a:.3f} s an epoch of {STEPS} steps against {b:.3f} s with a bare pl.Trainer;"
          " to reach 0.05)", flush=True)


if __name__ == "__main__":
    main()
