"`make demo`: train on one part of a real image, segment the other, say how well, draw it."
import shutil
import time
from pathlib import Path

import numpy as np
from skimage.filters import threshold_otsu

from mmv_im2im.config import preset
from mmv_im2im.data_modules.files import list_images
from mmv_im2im.data_modules.images import read_image
from mmv_im2im.data_modules.samples import sample_data
from mmv_im2im.inference.predictor import Predictor
from mmv_im2im.metrics import dice
from mmv_im2im.trainers import train
from mmv_im2im.vis import save_figure, show_result

folder = Path("demo")
shutil.rmtree(folder, ignore_errors=True)
begun = time.monotonic()

cfg = preset("semantic_seg_2d", out=str(folder / "run"),
             data=dict(path=str(sample_data("nuclei_2d", part="train"))), trainer=dict(max_epochs=25))
run = train(cfg)

test = sample_data("nuclei_2d", part="test")
source, target = (read_image(list_images(test / k)[0]).squeeze() for k in ("IM", "GT"))
pred = Predictor(run.best)(source)
otsu = source > threshold_otsu(source)

ours, baseline = dice(pred, target), dice(otsu.astype(np.uint8), target)
fig = show_result(source, pred, target > 0, labels=True,
                  title=f"nuclei never seen in training: Dice {ours:.3f} (Otsu's threshold {baseline:.3f})")
save_figure(fig, "demo.png")

print(f"figure demo_dice: {ours:.4f} (Otsu's threshold on the same pixels: {baseline:.4f})")
print(f"figure demo_seconds: {time.monotonic() - begun:.0f} s, after the installation")
print(f"picture: demo.png; run folder with curves and validation pictures: {run.folder}")
