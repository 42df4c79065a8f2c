"""Recipes that nnU-Net finds when nnUNet_extTrainer names this folder. Nothing here may be pickled."""
