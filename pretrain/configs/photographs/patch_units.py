# arm.py, but with prediction units of one patch instead of 4 x 4.
#   python tools/pretrain.py pretrain/configs/photographs/patch_units.py --data photos.txt --data-prefix data --amp
_base_ = ["./arm.py"]

model = dict(cluster_side=1)
