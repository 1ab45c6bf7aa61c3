"""The families of models, one module each; import them by name so that torch is loaded only when used."""
