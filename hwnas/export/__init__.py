"""The artefact: a folder with one network, everything needed to run it, and the numbers that prove it."""
