"""mmcv's operators without compiling: `_ext.py` computes with torchvision those that Mask R-CNN calls.

mmdet, mmseg and their inferencers import the compiled module `mmcv._ext`. Where mmcv was installed without it,
`python -m arm_toolkit.mmcv_ops` copies `_ext.py` there; tools/install.sh does that.
"""
