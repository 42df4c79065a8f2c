"""Public datasets, one declarative YAML file each."""
