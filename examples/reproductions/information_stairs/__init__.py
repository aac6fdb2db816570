"""Critics that climb stairs of mutual information, and how far off they are on each."""
