"""The stages joined: each function takes what the previous stage left on disk and leaves what the next one reads."""
