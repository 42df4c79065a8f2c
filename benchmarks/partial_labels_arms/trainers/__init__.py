"""One trainer per arm of the partial-label benchmark; `nnUNet_extTrainer` names this folder. Nothing is pickled."""
