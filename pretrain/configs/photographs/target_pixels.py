# Pixels that are not normalised by patch; else as arm.py.
#   python tools/pretrain.py pretrain/configs/photographs/target_pixels.py --data photos.txt --data-prefix data --amp
_base_ = ["./arm.py"]

model = dict(target="pixels")
