"""Images as files: `find` locates them, `archives` opens those inside larger files, `read` decodes and orients them.

Needs numpy and PIL only, and `datasets` for Hugging Face data sets. This file imports nothing, so that
`arm_images.errors` stays cheap to import.
"""
