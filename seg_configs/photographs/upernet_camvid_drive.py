# CamVid, tested on a drive that no training frame comes from. (CamVid's own validation frames are taken a second after
# training frames, so their mIoU is too high.) tools/compare_pretraining.py writes the two lists of frames and overrides
# ann_file with them, see docs/pretraining.md. To run this file alone, write the lists to data_root.
#   python tools/train.py seg_configs/photographs/upernet_camvid_drive.py --amp
_base_ = ["../upernet_arm_ti_camvid.py"]

train_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(ann_file="training_drives.txt"))
held_out = dict(
    ann_file="held_out_drive.txt", data_prefix=dict(img_path="images/training", seg_map_path="annotations/training")
)
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=held_out)
test_dataloader = val_dataloader
del held_out

train_cfg = dict(max_iters=250, val_interval=251)  # never: tools/test.py evaluates
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=25),
    dict(type="PolyLR", eta_min=0.0, power=1.0, by_epoch=False, begin=25, end=250),
]
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=250, save_best=None))
log_processor = dict(window_size=10)
