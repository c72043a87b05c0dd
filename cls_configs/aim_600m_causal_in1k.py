# aim_600m_in1k.py with causal attention in finetuning, too. Paper: 83.8 top-1.
#
#   bash tools/dist_train.sh cls_configs/aim_600m_causal_in1k.py 8
#
# Batch 256 = 8 GPUs x 32 images; 4 batches are accumulated per step: 1024.
_base_ = "aim_600m_in1k.py"
model = dict(causal=True)
