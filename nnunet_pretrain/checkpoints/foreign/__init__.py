"""Checkpoints of other programs, converted to the form nnU-Net v2 writes. One module per origin.

Each origin says whether a file is its own, by content, and converts it: tensors are renamed by a two-way table, and
plans and dataset.json are made of what the file says. What it does not say is None there and listed as unknown.
"""
