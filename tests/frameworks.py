"Frameworks of one's own, written as the contract says: one that samples, one that has a style, one that predicts vectors."
import torch
from torch import nn
from torch.nn import functional as F

from mmv_im2im.models.base import Im2ImModule, Regression


def conv(dims: int, ci: int, co: int) -> nn.Module:
    "Two small layers."
    layer = nn.Conv2d if dims == 2 else nn.Conv3d
    return nn.Sequential(layer(ci, 4, 3, padding=1), nn.ReLU(), layer(4, co, 3, padding=1))


class Small(nn.Sequential):
    "The same as a network that a config can describe."
    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int):
        super().__init__(*conv(spatial_dims, in_channels, out_channels))


class Generator(Im2ImModule):
    "Source and one noise field to a target: another result for each field."
    parts = Im2ImModule.parts | {"net": "net"}
    draws, samples = True, 4

    def __init__(self, net=None, **kwargs):
        super().__init__(**kwargs)
        self.net = net or conv(2, 2, 1)

    @classmethod
    def part_channels(cls, name, in_channels, out_channels): return in_channels + 1, out_channels

    def noise(self, source, generator): return torch.randn(source[:, :1].shape, generator=generator)

    def translate(self, source, noise): return self.net(torch.cat([source, noise], 1))

    def losses(self, batch):
        noise = torch.randn_like(batch["IM"][:, :1])
        return {"loss": F.mse_loss(self.translate(batch["IM"], noise), batch["GT"])}


class Styled(Generator):
    "A brightness for the whole image in place of a field."
    @classmethod
    def part_channels(cls, name, in_channels, out_channels): return in_channels, out_channels

    def __init__(self, net=None, **kwargs): super().__init__(net or conv(2, 1, 1), **kwargs)

    def noise(self, source, generator): return torch.randn(len(source), 1, generator=generator)

    def translate(self, source, noise): return self.net(source) + noise.view(-1, 1, *[1] * (source.ndim - 2))

    def losses(self, batch): return {"loss": F.mse_loss(self.net(batch["IM"]), batch["GT"])}


class Flow(Regression):
    "Vectors of components ([Z,] Y, X), compared by their angle, too."
    known = ("angle", *Regression.known)

    def measure(self, pred, target, weight=None, names=None):
        "Mean angle in degrees, and what is measured of intensities."
        names = names or self.known
        found = super().measure(pred, target, weight, [n for n in names if n != "angle"])
        angle = torch.acos(F.cosine_similarity(pred, target, 0).clamp(-1, 1)).rad2deg()
        return {"angle": float(angle.mean())} | found

    def turned_back(self, raw, axes):
        "Components along mirrored axes change their sign."
        n = raw.ndim - 2
        sign = torch.tensor([-1.0 if i - n in axes else 1.0 for i in range(n)])
        return raw.flip(axes) * sign.view(1, n, *[1] * n)


class Vectors(Im2ImModule):
    "The gradient of the source, in pixels."
    parts, task = Im2ImModule.parts | {"net": "net"}, Flow()

    def __init__(self, net=None, **kwargs):
        super().__init__(**kwargs)
        self.net = net or conv(2, 1, 2)

    @classmethod
    def output_channels(cls, spec, target_channels): return target_channels

    def translate(self, source): return self.net(source)

    def losses(self, batch): return {"loss": F.mse_loss(self.translate(batch["IM"]), batch["GT"])}
