"""The encoders with ARM's trunk, by the names that configurations and messages use."""

from .arm import ARM, ARMTrunk
from .vim import Vim, VimTrunk

TRUNKS: dict[str, type[ARMTrunk]] = {trunk.encoder_name: trunk for trunk in (ARMTrunk, VimTrunk)}
BACKBONES: dict[str, type[ARM]] = {backbone.encoder_name: backbone for backbone in (ARM, Vim)}


def trunk_class(encoder: str) -> type[ARMTrunk]:
    """The trunk of an encoder.

    Raises:
        ValueError: for an unknown name.
    """
    if encoder not in TRUNKS:
        raise ValueError(f"encoder={encoder!r} is unknown; give one of {', '.join(TRUNKS)}")
    return TRUNKS[encoder]
