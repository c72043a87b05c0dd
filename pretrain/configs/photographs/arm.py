# ARM-Ti on a thousand photographs, 20 epochs: the baseline of a comparison on a CPU (docs/pretraining.md).
# tools/compare_pretraining.py runs the files of this folder and evaluates them by segmentation; this one alone:
#   python tools/pretrain.py pretrain/configs/photographs/arm.py --data photos.txt --data-prefix data --amp
_base_ = ["../arm_ti.py"]

train_dataloader = dict(batch_size=32, num_workers=0, persistent_workers=False, pin_memory=False)
train_cfg = dict(max_epochs=20)
optim_wrapper = dict(optimizer=dict(lr=1e-3))  # tuned at batch 32; the paper's rule gives 1.9e-5, for 1600 epochs
param_scheduler = dict(warmup=1)
auto_scale_lr = dict(base_batch_size=32)
default_hooks = dict(logger=dict(interval=5), checkpoint=dict(interval=5, max_keep_ckpts=1))
log_processor = dict(window_size=5)
