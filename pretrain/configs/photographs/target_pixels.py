# arm.py, but with pixels without per-patch normalization as the target.
#   python tools/pretrain.py pretrain/configs/photographs/target_pixels.py --data photos.txt --data-prefix data --amp
_base_ = ["./arm.py"]

model = dict(target="pixels")
