"""Claims: real models and data to measure on, and the measured statements about recipes."""
