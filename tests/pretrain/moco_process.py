"""One of two processes that compute a step of MoCo on half a batch: FOLDER RANK; see test_moco.py."""

import sys
from pathlib import Path

import numpy as np
import torch

from arm_pretrain import MoCoPretrainer
from arm_pretrain.moco import contrastive_loss
from tests.helpers.paths import SHARED


def pretrainer(**arguments) -> MoCoPretrainer:
    """A small model, the same in every process."""
    torch.manual_seed(0)
    return MoCoPretrainer(
        **dict(arch=dict(embed_dims=32, num_layers=4), img_size=(32, 48), hidden_dim=64, out_dim=16) | arguments
    )


def learn(model: MoCoPretrainer, views: torch.Tensor) -> torch.Tensor:
    """The loss, after its backward."""
    loss = model(views, mode="loss")["loss"]
    loss.backward()
    return loss


def golden(rank: int) -> dict[str, tuple[float, float]]:
    """Our loss and the public code's, of the file with two ranks; {} without the file."""
    path = SHARED / "golden_encoders/moco_loss.npz"
    if not path.is_file():
        return {}
    file = np.load(path)
    part = {name: torch.tensor(file[f"two_ranks/in/rank{rank}_{name}"]).double() for name in ("q1", "q2", "k1", "k2")}
    ours = contrastive_loss(part["q1"], part["k2"], 0.2) + contrastive_loss(part["q2"], part["k1"], 0.2)
    return {"loss": (float(ours), float(file[f"two_ranks/out64/loss_rank{rank}"]))}


def main(folder: Path, rank: int) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    start = torch.load(folder / "start.pth", weights_only=True)
    model = pretrainer(momentum=0.9).double()
    model.load_state_dict(start["model"])
    loss = learn(model, start["views"].chunk(2)[rank])
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    result = dict(loss=loss.detach(), gradients=gradients, state=model.state_dict(), golden=golden(rank))
    torch.save(result, folder / f"{rank}.pth")
    torch.distributed.barrier()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
