"""How well: correlations, the choice of layer and condition from training scores, and regions."""
