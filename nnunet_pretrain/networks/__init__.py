"""Networks that are not nnU-Net's own, under nnU-Net's calling convention."""
