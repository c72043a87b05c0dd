# Units of one patch instead of clusters of 4 x 4; else as arm.py.
#   python tools/pretrain.py pretrain/configs/photographs/patch_units.py --data photos.txt --data-prefix data --amp
_base_ = ["./arm.py"]

model = dict(cluster_side=1)
