"""A BIDS data set with fMRIPrep-shaped derivatives whose brain responses have a known cause."""
