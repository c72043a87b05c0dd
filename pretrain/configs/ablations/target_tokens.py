# Ablation: discrete tokens (paper: 82.2 top-1 after finetuning, with DALL-E's dVAE). Here a k-means tokenizer that
# tools/fit_tokenizer.py makes; for the dVAE: target=dict(type="DVAETokenizer", checkpoint=...).
#   python tools/fit_tokenizer.py data/imagenet/train checkpoints/kmeans_512.safetensors --tokens 512
#   tools/dist_train.sh pretrain/configs/ablations/target_tokens.py 8          8 GPUs x 256 images = 2048
_base_ = ["./_base_/arm_b_300e.py"]

model = dict(target=dict(type="KMeansTokenizer", checkpoint="checkpoints/kmeans_512.safetensors"))
