# Ablation: discrete tokens as the target. Paper: 82.2 top-1 after finetuning, with DALL-E's dVAE. Here: a k-means
# tokenizer from tools/fit_tokenizer.py. For the dVAE: target=dict(type="DVAETokenizer", checkpoint=...).
#   python tools/fit_tokenizer.py data/imagenet/train checkpoints/kmeans_512.safetensors --tokens 512
#   tools/dist_train.sh pretrain/configs/ablations/target_tokens.py 8     # batch 2048 = 8 GPUs x 256 images
_base_ = ["./_base_/arm_b_300e.py"]

model = dict(target=dict(type="KMeansTokenizer", checkpoint="checkpoints/kmeans_512.safetensors"))
