# upernet_camvid_drive.py with a Vim of about as many parameters as ARM-Ti, without a class token.
#   python tools/train.py seg_configs/photographs/upernet_vim_camvid_drive.py --amp
_base_ = ["./upernet_camvid_drive.py"]

model = dict(
    backbone=dict(type="Vim", arch=dict(_delete_=True, embed_dims=192, num_layers=18), scans=2, cls_token=None)
)
