"""Parts of the partial-label benchmark: arms, data, and one run."""
