# arm.py, but with a new random order of the clusters in every step.
#   python tools/pretrain.py pretrain/configs/photographs/order_random.py --data photos.txt --data-prefix data --amp
_base_ = ["./arm.py"]

model = dict(order="random")
