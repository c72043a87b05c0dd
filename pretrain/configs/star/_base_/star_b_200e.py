# STAR-B (arXiv 2603.03806): eight images per sequence, an identity separator before each, 200 epochs; otherwise
# ARM-B's settings.
_base_ = ["../../_base_/arm_imagenet_1600e.py"]

model = dict(
    images_per_sequence=8,
    separator=dict(type="cluster", value="identity", position="SC"),
)
train_cfg = dict(max_epochs=200)
