"""Supervised pre-training on merged, partially labelled CT datasets for nnU-Net v2."""

from pathlib import Path

__version__ = "0.1.0"

# In a checkout the three leaf folders (trainers, plans, dataset_conversion) lie beside the package, not in it.
_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "trainers" / "__init__.py").is_file() and (_checkout / "setup.py").is_file():
    __path__.append(str(_checkout))
