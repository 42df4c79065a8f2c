"""Package map of nnunet-pretrain; every other setting is in pyproject.toml.

The three leaf folders lie at the top of the repository and are installed inside the package, so that no
top-level package named "trainers" or "plans" can collide with another project's.
"""

from setuptools import find_packages, setup

LEAVES = ("trainers", "plans", "dataset_conversion")

# The guard matters: nnU-Net imports every module it finds below a folder named in nnUNet_extTrainer.
if __name__ == "__main__":
    setup(
        packages=[
            *find_packages(include=["nnunet_pretrain", "nnunet_pretrain.*"]),
            *(f"nnunet_pretrain.{leaf}" for leaf in LEAVES),
        ],
        package_dir={f"nnunet_pretrain.{leaf}": leaf for leaf in LEAVES},
        package_data={
            "nnunet_pretrain": ["py.typed"],
            "nnunet_pretrain.plans": ["*.json"],
            "nnunet_pretrain.dataset_conversion": ["*.yaml", "*.json", "natural_images/*.yaml"],
        },
    )
