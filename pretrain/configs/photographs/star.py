# arm.py, but as in STAR: four images per sequence and an identity separator before each.
#   python tools/pretrain.py pretrain/configs/photographs/star.py --data photos.txt --data-prefix data --amp
_base_ = ["./arm.py"]

model = dict(images_per_sequence=4, separator=dict(type="cluster", value="identity", position="SC"))
