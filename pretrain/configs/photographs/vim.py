# arm.py with a Vim of about as many parameters as ARM-Ti, and one causal scan.
#   python tools/pretrain.py pretrain/configs/photographs/vim.py --data photos.txt --data-prefix data --amp
_base_ = ["./arm.py"]

model = dict(encoder="Vim", arch=dict(_delete_=True, embed_dims=192, num_layers=18))
