"""Small models with seeded weights."""

import torch

from arm_pretrain import ARMPretrainer

ARCH = dict(embed_dims=32, num_layers=4)


def pretrainer(**arguments) -> ARMPretrainer:
    torch.manual_seed(0)
    model = ARMPretrainer(**dict(arch=ARCH, img_size=96, cluster_side=2, decoder_dim=64) | arguments)
    return model.double().eval()
