"""Model parts for OpenMMLab: float32 heads, test-time augmentation, mixup."""
