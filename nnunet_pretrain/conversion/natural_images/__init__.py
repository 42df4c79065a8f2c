"""Datasets of 2D natural images as nnU-Net raw datasets: red, green and blue become the three slices of a volume."""
